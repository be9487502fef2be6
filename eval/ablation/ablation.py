"""An ablation: the rows that a configuration asks for, each a model with settings on a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dllm import cache as caches
from dllm import schedulers
from dllm.decoding.speculation import verifiers
from dllm.eval.ablation.published import Published
from dllm.eval.run.describe import short
from dllm.eval.tasks import READ, TASKS
from dllm.eval.tasks.task import TaskOptions
from dllm.registry import nearest
from dllm.settings import resolve


@dataclass(frozen=True)
class TaskChoice:
    """A task by name, with what decides its prompts."""

    name: str
    style: str | None = None
    shots: int | None = None
    data: Path | None = None
    examples: Path | None = None

    def __post_init__(self) -> None:
        known = [*TASKS, *READ]
        if self.name not in known:
            raise ValueError(f"unknown task {self.name!r}: {nearest(self.name, known)}")
        given = [f"{key}={value}" for key, value in vars(self).items() if value is not None]
        if self.name not in READ and len(given) > 1:
            raise ValueError(
                f"task {self.name!r} makes its own problems and has no {', '.join(given[1:])}"
            )

    def options(self, *, run_code: bool) -> TaskOptions:
        """Returns what the task is told."""
        return TaskOptions(self.data, self.style, self.examples, self.shots, run_code)

    @property
    def text(self) -> str:
        """The name with its options."""
        options = [self.style, None if self.shots is None else f"{self.shots} shots"]
        said = ", ".join(option for option in options if option)
        return f"{self.name} ({said})" if said else self.name


@dataclass(frozen=True)
class Row:
    """One run of an ablation."""

    name: str
    method: str  # joins rows to a curve
    model: str
    task: TaskChoice
    given: Mapping[str, Any]  # settings as they were written
    dtype: str | None = None
    batch_size: int = 32
    published: Published | None = None
    missing: str = ""  # files that the settings need and that are not there, and how to get them

    def __post_init__(self) -> None:
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise ValueError(f"batch_size={self.batch_size!r} must be a whole number")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")


@dataclass(frozen=True)
class Ablation:
    """The rows of a configuration file, and what it says of them."""

    name: str
    about: str  # one line
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    limit: int | None = None  # problems a run; None: all of a data set, 100 of a made task
    changed: str = field(default="")  # what a command line replaced


def method_of(given: Mapping[str, Any]) -> str:
    """Returns the parts of settings by name: the curve that a row is on unless it says so."""
    settings = resolve({}, None, given)
    names = [schedulers.registry.create(settings.scheduler).summary()["name"]]
    cache = caches.registry.create(settings.cache).summary()
    if cache["name"] != "none":
        names.append(short(cache, caches.registry))
    if settings.verifier is not None:
        verifier = verifiers.registry.create(settings.verifier).summary()
        names.append(short(verifier, verifiers.registry))
    return " + ".join(map(str, names))


def check_given(given: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError for settings and parts that do not exist."""
    settings = resolve({}, None, given)
    schedulers.registry.create(settings.scheduler)
    caches.registry.create(settings.cache)
    if settings.verifier is not None:
        verifiers.registry.create(settings.verifier)


def unique(names: Sequence[str]) -> str | None:
    """Returns the first name that comes twice, None if there is none."""
    return next((name for name in names if names.count(name) > 1), None)
