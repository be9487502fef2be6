"""The tasks of `dllm eval`: where problems come from and what counts as right.

A module or folder in here that has a `TASK` is a task, under that one's name. So is what an
installed package declares (entry points `dllm.tasks`), and what is named as `module:Name` or
`path/file.py:Name`: a `Task` or `ReadTask`, or what makes one when it is called.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from dllm.eval.tasks.task import ReadTask, Task, TaskOptions
from dllm.registry import declared as declared_elsewhere
from dllm.registry import nearest, own_object

_OF_OWN = ("--question-field", "--answer-field", "--judge", "--template")
_OF_ONE = {**dict.fromkeys(_OF_OWN, "own"), "--hole-tokens": "cpp_infilling"}  # by the task
_GROUP = "dllm.tasks"  # of entry points
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
    for owner in dict.fromkeys(_OF_ONE.values()):
        flags = [flag for flag in options.flags if _OF_ONE.get(flag) == owner]
        if flags and name != owner:
            raise ValueError(f"{', '.join(flags)}: only the task {owner!r} has these, not {name!r}")
    if name in READ:
        return READ[name].read(options)
    base, _, selection = name.partition(":")
    if base in TASKS and (select := TASKS[base].select) is not None:
        return select(selection, options)
    task = TASKS.get(name) or _own(name)
    if task is None:
        raise ValueError(f"unknown task {name!r}: {nearest(name, known())}")
    if isinstance(task, ReadTask):
        return task.read(options)
    if options.flags:
        raise ValueError(
            f"{', '.join(options.flags)}: the task {name!r} makes its own problems; only "
            f"{', '.join(READ)} and, for some of them, {', '.join(_with_parts())} have these "
            "options"
        )
    return task


def known() -> list[str]:
    """Lists the names of the tasks in here, and of those that installed packages declare."""
    return [*TASKS, *READ, *sorted(declared_elsewhere(_GROUP))]


def is_task(name: str) -> bool:
    """Whether there is a task of this name, or a place elsewhere that the name is of."""
    return name in known() or name.partition(":")[0] in _with_parts() or _own(name) is not None


def _with_parts() -> list[str]:
    """Lists the tasks of which a part may be named, as in `parallel_bench:shuffle`."""
    return [name for name, task in TASKS.items() if task.select is not None]


def _own(name: str) -> Task | ReadTask | None:
    """Returns a task of another package, or of the user's own module or file."""
    found = own_object(name, _GROUP)
    made = found() if callable(found) and _takes_nothing(found) else found
    if made is not None and not isinstance(made, Task | ReadTask):
        raise ValueError(
            f"task {name!r} is {found!r}: it must be a dllm.eval.tasks.Task, a ReadTask, or what "
            "returns one of them when it is called without arguments"
        )
    return made


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


__all__ = ["READ", "TASKS", "ReadTask", "Task", "TaskOptions", "find_task", "is_task", "known"]
