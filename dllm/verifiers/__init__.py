"""The verifiers: how far ahead of a row its next steps are drafted, one method a file."""

from __future__ import annotations

import sys

from dllm.registry import Registry
from dllm.verifiers.base import Verifier

registry: Registry[Verifier] = Registry(sys.modules[__name__], Verifier, "verifier")  # type: ignore[type-abstract]

__all__ = ["Verifier", "registry"]
