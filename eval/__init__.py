"""Tasks, runner, ablations and reports: accuracy beside speed."""

from __future__ import annotations

if __name__ != "dllm.eval":
    raise ImportError("this folder is a part of dllm: import dllm.eval, not eval")

from dllm.eval.tasks import arithmetic, functions, gsm8k, humaneval, lists

__all__ = ["arithmetic", "functions", "gsm8k", "humaneval", "lists"]
