"""The setup of a run, and the description of what decides its answers, which names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import dllm
from dllm import cache as caches
from dllm import schedulers
from dllm.constraints.written import described as constraint_text
from dllm.eval.run import digest_of, stable
from dllm.eval.run.processes import Processes
from dllm.eval.run.record import checkpoint_digest
from dllm.eval.tasks import Task
from dllm.eval.tasks.task import Problem
from dllm.models.model import DenoisingModel
from dllm.options import Count, Options, shown
from dllm.registry import Registry
from dllm.settings import DEFAULT_BLOCK_LENGTH, PARTS, Settings

# Named one by one in a run's description, whatever their value.
_NAMED = (
    *("max_new_tokens", "block_length", "temperature", "top_p", "top_k", "guidance_scale"),
    "seed",
)
_DRAWN = ("generator", "noise")  # named by their content, where they are given
_DESCRIBED = {*PARTS, *_NAMED, *_DRAWN, "batch_size"}  # or no part of it, as the last
# What an edit changes, and another version; results of before it was noted have none of them.
ORIGIN = ("version", "checkpoint", "sources")
# In place of a constraint, of a task whose problems have some: all of them, or none.
OF_EACH, FREE = "of each problem", "none"
_EMBEDDED = "tiny"  # comes with the package, whatever lies in the folder


@dataclass(frozen=True)
class Setup(Options):
    """A model with settings, over the problems of a task.

    `settings.batch_size`, if it is given, takes the place of `batch_size`.
    """

    model: DenoisingModel
    task: Task
    settings: Settings
    batch_size: Count = 32  # rows decoded at a time, at most
    processes: Processes = field(default_factory=Processes)  # that share the problems
    keep_trace: bool = False  # in each result; decides no answer, so the name is the same
    constrained: bool = True  # problems that say what their answers must be are held to it

    def describe(self) -> dict[str, Any]:
        """Returns what decides the answers, as JSON-ready values.

        The checkpoint's content and the code of the parts and of the task are in it as digests: an
        edited rule, or another checkpoint of that name, is another run. A verifier, files, noise
        and the options of a task are there only if there are any.
        """
        return dict(self._described)

    @cached_property
    def _described(self) -> dict[str, Any]:
        dtype, options = getattr(self.model, "dtype", None), self.task.options
        given = settings_of(self.settings)
        if self.task.constrained:  # their digest is among the options, or the code makes them
            given["other"].setdefault("constraint", OF_EACH if self.holds else FREE)
        return {
            "model": self.model.name,
            "dtype": None if dtype is None else str(dtype),
            "task": self.task.name,
            **({"task_options": dict(options)} if options else {}),
            **given,
            **origin_of(self.model, self.settings, self.task),
        }

    @property
    def name(self) -> str:
        """A short name that is the same for the same settings."""
        return name_of(self.describe())

    @property
    def holds(self) -> bool:
        """Whether problems are decoded under constraints of their own."""
        return self.task.constrained and self.constrained

    def check(self, problems: Sequence[Problem]) -> None:
        """Raises ValueError for settings that are one for each prompt, or say what problems say."""
        held, name = self.settings.constraint, self.task.name
        for one in ("constraint", "template"):
            if isinstance(given := getattr(self.settings, one), list):
                raise ValueError(
                    f"{one}={shown(given)} is one for each prompt, and a run has one for all "
                    "problems"
                )
        if self.holds and held is not None:
            raise ValueError(
                f"constraint={shown(held)} says what an answer must be, and so does each problem "
                f"of {name!r}: leave it out, or theirs (--no-constrained, constrained=False)"
            )
        self._check_templates(problems)
        if not self.constrained and not self.task.constrained:
            raise ValueError(
                f"--no-constrained (constrained=False): problems of {name!r} do not say what an "
                "answer must be, so there is nothing to leave out"
            )
        if not self.task.constrained and any(problem.constraint for problem in problems):
            raise ValueError(
                f"problems of {name!r} have a constraint, which no run would be named after: make "
                "the task with constrained=True"
            )
        if self.settings.n != 1:
            raise ValueError(
                f"n={self.settings.n}: a problem is answered once; give it several times, with ids "
                "of their own (--samples, eval.sampled)"
            )

    def _check_templates(self, problems: Sequence[Problem]) -> None:
        """Raises ValueError for templates that no run is named after, or that come from two."""
        name, given = self.task.name, self.settings.template
        laid_out = [problem.template is not None for problem in problems]
        if any(laid_out) and not self.task.laid_out:
            raise ValueError(
                f"problems of {name!r} have a template, which no run would be named after: make "
                "the task with laid_out=True"
            )
        if self.task.laid_out and not all(laid_out):
            bare = next(problem for problem in problems if problem.template is None)
            raise ValueError(
                f"problem {bare.id!r} of {name!r} has no template, and others have: give each "
                "problem one"
            )
        if self.task.laid_out and given is not None:
            raise ValueError(
                f"template={shown(given)} says what is laid out, and so does each problem of "
                f"{name!r}: leave it out"
            )

    @property
    def num_rows(self) -> int:
        """Rows decoded at a time."""
        return self.settings.batch_size or self.batch_size

    @property
    def continuous(self) -> bool:
        """Whether waiting problems take the places of finished ones; else batch follows batch.

        They do where a row that enters feeds no more columns than the others, and with any cache
        if `settings.batch_size` asks for it. Decides no answer.
        """
        asked = self.settings.batch_size is not None
        return asked or (caches.registry.create(self.settings.cache).even and self.waits)

    @property
    def waits(self) -> bool:
        """Whether a call may have more problems than rows are decoded at a time.

        Custom noise does not tell problems apart, and has a call for each batch; but if
        `settings.batch_size` is given, which is then refused.
        """
        return self.settings.noise is None or self.settings.batch_size is not None

    @property
    def block_length(self) -> int:
        """Columns decoded together, whoever chose their number."""
        own = self.settings.block_length or self.model.spec.block_length
        return own or min(DEFAULT_BLOCK_LENGTH, self.settings.max_new_tokens)


def settings_of(settings: Settings) -> dict[str, Any]:
    """Returns all that settings say of the answers, parts with their options included."""
    drawn = {name: getattr(settings, name) for name in _DRAWN}
    return {
        **parts_of(settings),
        **{name: getattr(settings, name) for name in _NAMED},
        **{name: stable(value) for name, value in drawn.items() if value is not None},
        "other": _changed(settings),
    }


def origin_of(
    model: DenoisingModel, settings: Settings, task: Task | None = None
) -> dict[str, Any]:
    """Returns what an edit changes and another version: digests of checkpoint and code."""
    return {
        "version": dllm.__version__,
        "checkpoint": checkpoint_digest(model),
        "sources": sources_of(settings, task),
    }


def parts_of(settings: Settings) -> dict[str, Any]:
    """Returns the parts of settings with their options, and digests of the files they name."""
    parts = {name: stable(part.summary()) for name, part in _parts(settings).items()}
    files = dict(pair for name, part in parts.items() for pair in _files(name, part))
    return {**parts, **({"files": files} if files else {})}


def sources_of(settings: Settings, task: Task | None) -> dict[str, str]:
    """Returns digests of the code of each part of settings, and of a task if it is dllm's."""
    parts = {name: digest_of(part) for name, part in _parts(settings).items()}
    return parts if task is None else {**parts, "task": digest_of(task.problems, task.judge)}


def _parts(settings: Settings) -> dict[str, Any]:
    given = {name: getattr(settings, name) for name in PARTS}
    return {name: PARTS[name].create(one) for name, one in given.items() if one is not None}


def name_of(described: Mapping[str, Any]) -> str:
    """Returns a short name that is the same for the same description."""
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def seed_of(seed: int | list[int] | None, problem_id: str) -> int:
    """Returns the seed of a problem, which does not depend on its place in a batch."""
    text = f"{seed if isinstance(seed, int) else 0}-{problem_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def label_of(described: Mapping[str, Any]) -> str:
    """Returns scheduler / cache, and the verifier if there is one, of a run's description."""
    return " / ".join(short_names(described).values())


def short_names(described: Mapping[str, Any]) -> dict[str, str]:
    """Returns the short forms of scheduler, cache and verifier of a run's description."""
    return {
        part: short(described[part], registry)
        for part, registry in PARTS.items()
        if part in described
    }


def short(part: Mapping[str, Any], registry: Registry[Any]) -> str:
    """Returns the short form of a scheduler or cache, options at their default left out.

    One that was given as an instance from elsewhere has no known defaults: all are named.
    """
    known = part["name"] in registry.names()
    usual = {f.name: _default(f) for f in fields(registry.get(part["name"]))} if known else {}
    first = next(iter(usual), None)  # its name may be left out
    options = []
    for key in [key for key in (usual or part) if key in part and key != "name"]:
        # A record from before an option came lacks it, and ran as by default.
        if not known or part[key] != usual[key]:
            inner = isinstance(part[key], Mapping) and "name" in part[key]
            value = short(part[key], registry) if inner else part[key]
            options.append(str(value) if key == first else f"{key}={value}")
    return ":".join([str(part["name"]), *([",".join(options)] if options else [])])


def _default(field: Field[Any]) -> Any:
    """Returns an option's default as a summary holds it: a part that is an option is a mapping."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return value.summary() if isinstance(value, schedulers.Scheduler) else value


def _files(path: str, part: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the path within the part and the digest of each file that its options name.

    What is trained anew under an old name then makes another run.
    """
    found = []
    for key, value in part.items():
        if isinstance(value, Mapping):
            found += _files(f"{path}.{key}", value)
        elif isinstance(value, str) and key != "name":
            file = Path(value).expanduser()
            if value != _EMBEDDED and file.is_file():
                digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
                found.append((f"{path}.{key}", digest))
    return found


def _changed(settings: Settings) -> dict[str, str]:
    """Returns the further settings that are not at their default, as text."""
    changed = {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if field.name not in _DESCRIBED and getattr(settings, field.name) != field.default
    }
    return {
        name: constraint_text(value) if name in ("constraint", "template") else str(value)
        for name, value in changed.items()
    }
