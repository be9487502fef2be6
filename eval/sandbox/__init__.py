"""Runs model-written code behind the walls that the system allows."""

from __future__ import annotations

from dllm.eval.sandbox.sandbox import Sandbox, open_sandbox
from dllm.eval.sandbox.verdict import Level, Limits, SandboxError, Verdict

__all__ = ["Level", "Limits", "Sandbox", "SandboxError", "Verdict", "open_sandbox"]
