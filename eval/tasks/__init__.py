"""The tasks of `dllm eval`: where problems come from and what counts as right.

A module or folder in here that has a `TASK` is a task, under that one's name.
"""

from __future__ import annotations

import importlib
import pkgutil

from dllm.eval.tasks.task import ReadTask, Task, TaskOptions
from dllm.registry import nearest

_OF_OWN = ("--question-field", "--answer-field", "--judge", "--template")
_FIRST = ("arithmetic", "lists", "functions")  # in listings, by difficulty; the others by name


def declared() -> list[Task | ReadTask]:
    """Returns the `TASK` of each module and folder in here that has one."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    names.sort(key=lambda name: ((*_FIRST, name).index(name), name))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [module.TASK for module in modules if hasattr(module, "TASK")]


TASKS = {task.name: task for task in declared() if isinstance(task, Task)}  # made here
READ = {task.name: task for task in declared() if isinstance(task, ReadTask)}


def find_task(name: str, options: TaskOptions | None = None) -> Task:
    """Returns a task by name; raises ValueError that lists the known ones."""
    options = options or TaskOptions()
    of_own = [flag for flag in options.flags if flag in _OF_OWN]
    if of_own and name != "own":
        raise ValueError(f"{', '.join(of_own)}: only the task 'own' has these, not {name!r}")
    if name in READ:
        return READ[name].read(options)
    base, _, selection = name.partition(":")
    if base in TASKS and (select := TASKS[base].select) is not None:
        return select(selection, options)
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: {nearest(name, [*TASKS, *READ])}")
    if options.flags:
        raise ValueError(
            f"{', '.join(options.flags)}: the task {name!r} makes its own problems; only "
            f"{', '.join(READ)} and, for two of them, parallel_bench have these options"
        )
    return TASKS[name]


__all__ = ["READ", "TASKS", "ReadTask", "Task", "TaskOptions", "find_task"]
