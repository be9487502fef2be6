"""The tasks of `dllm eval`: where problems come from and what counts as right."""

from __future__ import annotations

from dllm.eval.tasks.task import READ, TASKS, ReadTask, Task, find_task

__all__ = ["READ", "TASKS", "ReadTask", "Task", "find_task"]
