"""An ablation: the rows that a configuration asks for, each a model with settings on a task.

A row may have figures that its authors published, which a measurement agrees with or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from dllm.constraints.written import title_of
from dllm.eval.run.describe import short
from dllm.eval.run.summary import Summary, wilson
from dllm.eval.tasks import READ, TASKS, is_task, known
from dllm.eval.tasks.task import Shots
from dllm.options import Amount, Count, Options, Range, shown
from dllm.registry import nearest
from dllm.settings import PARTS, resolve

FULL = {"gsm8k": 1319, "humaneval": 164}  # problems of the test splits that papers report


@dataclass(frozen=True)
class TaskChoice(Options):
    """A task by name, with what decides its prompts."""

    name: str
    style: str | None = None
    shots: Shots | None = None
    data: Path | None = None
    examples: Path | None = None

    def __post_init__(self) -> None:
        if not is_task(self.name):
            raise ValueError(f"unknown task {self.name!r}: {nearest(self.name, known())}")
        options = [f"{key}={value}" for key, value in vars(self).items() if value is not None][1:]
        if self.name in TASKS and TASKS[self.name].select is None and options:
            listed = ", ".join(options)
            raise ValueError(f"task {self.name!r} makes its own problems and has no {listed}")

    @property
    def text(self) -> str:
        """The name with its options."""
        shots = None if self.shots is None else f"{self.shots} shots"
        options = ", ".join(filter(None, (self.style, shots)))
        return f"{self.name} ({options})" if options else self.name


Percentage = Annotated[float, Range(0, 100, words="a number, a percentage from 0 to 100")]


@dataclass(frozen=True)
class Published(Options):
    """Figures of a paper or repository for one setting."""

    source: str  # where they stand
    accuracy: Percentage | None = None  # in %; None: not published, or not known, as `because` says
    tokens_per_second: Amount | None = None  # on the authors' hardware, by their way of counting
    tokens_per_forward: Amount | None = None
    problems: Count | None = None  # None: the task's whole test split
    score: str = ""  # of the scores that the judge keeps; empty: the accuracy of the report
    differs: str = ""  # what of the authors' protocol this project does not have
    because: str = ""  # why there is no accuracy

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("published figures need a 'source'")
        if self.accuracy is None and not self.because:
            raise ValueError("published without an accuracy needs 'because', the reason")

    def tolerance(self, problems: int) -> tuple[float, float]:
        """Returns the 95 % Wilson interval, in %, of the accuracy on that many problems."""
        assert self.accuracy is not None
        low, high = wilson(round(self.accuracy / 100 * problems), problems)
        return 100 * low, 100 * high


@dataclass(frozen=True)
class Row(Options):
    """One run of an ablation."""

    name: str
    method: str  # joins rows to a curve
    model: str
    task: TaskChoice
    given: Mapping[str, Any]  # settings as they were written
    dtype: str | None = None
    batch_size: Count = 32
    published: Published | None = None
    missing: str = ""  # files that the settings need and that are not there, and how to get them
    revision: str | None = None  # of a hub id
    adapter: str | None = None  # merged into the model
    constrained: bool = True  # problems that say what their answers must be are held to it

    @property
    def whole(self) -> str:
        """The model with what is merged into it, as `load` names it."""
        return self.model if self.adapter is None else f"{self.model}+{self.adapter}"

    @property
    def loaded(self) -> tuple[str | None, ...]:
        """What of the row decides which model is loaded."""
        return self.model, self.dtype, self.revision, self.adapter


@dataclass(frozen=True)
class Ablation(Options):
    """The rows of a configuration file, and what it says of them."""

    name: str
    about: str  # one line
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    limit: Count | None = None  # problems a run; None: all of a data set, 100 of a made task
    changed: str = field(default="")  # what a command line replaced


def method_of(given: Mapping[str, Any]) -> str:
    """Returns the parts of settings by name: the curve that a row is on unless it says so.

    Raises ValueError or TypeError for settings and parts that do not exist.
    """
    settings = resolve({}, None, given)
    parts = {key: part for key in PARTS if (part := getattr(settings, key)) is not None}
    summaries = {key: PARTS[key].create(part).summary() for key, part in parts.items()}
    names = [
        summary["name"] if key == "scheduler" else short(summary, PARTS[key])
        for key, summary in summaries.items()
        if summary["name"] != "none"
    ]
    constraint = settings.constraint
    return " + ".join([*names, *([] if constraint is None else [title_of(constraint)])])


def combinations(
    grid: Mapping[str, Any], exclude: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns a mapping for each combination; a list holds alternatives.

    Raises ValueError for an exclusion that excludes nothing, and if nothing is left.
    """
    choices = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
    for key, values in choices.items():
        if not values:
            raise ValueError(f"grid: {key} has no values")
    combined = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    for number, item in enumerate(exclude, start=1):
        if not any(_fits(one, item) for one in combined):
            raise ValueError(f"exclude item {number}: no combination has {shown(dict(item))}")
    left = [one for one in combined if not any(_fits(one, item) for item in exclude)]
    if not left:
        raise ValueError("grid: every combination is excluded")
    varying = [key for key, values in choices.items() if len(values) > 1]
    return [{**one, "name": _name(one, varying)} for one in left]


def _fits(one: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Whether a combination has each value of an item, or one of them where it has several."""
    return all(
        key in one and one[key] in (value if isinstance(value, list) else [value])
        for key, value in item.items()
    )


def _name(one: Mapping[str, Any], varying: Sequence[str]) -> str:
    """Returns the parts that a combination has, then what else varies."""
    named = [
        text_of(key, one[key])
        for key in PARTS
        if one.get(key, "none") not in (None, "none") and (key == "scheduler" or key in varying)
    ]
    others = [
        text_of(key, one[key]) if key in ("model", "task") else f"{key}={text_of(key, one[key])}"
        for key in varying
        if key not in PARTS
    ]
    return ", ".join([*([" + ".join(named)] if named else []), *others]) or "all"


def text_of(key: str, value: Any) -> str:
    """Returns a value as a name has it: parts in their short form, a task by name and options."""
    if key == "constraint":
        return title_of(value)
    if isinstance(value, Mapping) and key in PARTS:
        return short(PARTS[key].create(value).summary(), PARTS[key])
    return " ".join(map(str, value.values())) if isinstance(value, Mapping) else str(value)


def with_model(
    ablation: Ablation,
    model: str | None,
    revision: str | None = None,
    adapter: str | None = None,
) -> Ablation:
    """Returns the ablation with another model in every row; published figures no longer apply."""
    if model is None:
        for option, value in (("--revision", revision), ("--adapter", adapter)):
            if value is not None:
                raise ValueError(f"{option} {value!r}: name the model that it is of with --model")
        return ablation
    own = {"model": model, "revision": revision, "adapter": adapter}
    rows = tuple(replace(row, **own) for row in ablation.rows)  # type: ignore[arg-type]
    at = "" if revision is None else f" at {revision!r}"
    at += "" if adapter is None else f" with {adapter!r}"
    return replace(ablation, rows=rows, changed=f"the model {model!r}{at}")


def with_files(ablation: Ablation, data: Sequence[str], examples: Path | None) -> Ablation:
    """Returns the ablation with problems from files, each given as `task=FILE`.

    A file without a task is that of the only data set that the rows use.
    """
    used = sorted({row.task.name for row in ablation.rows} & set(READ))
    if (data or examples) and not used:
        raise ValueError("--data, --examples: every task of this ablation makes its own problems")
    if examples is not None and "gsm8k" not in used:
        raise ValueError("--examples: no row has the task gsm8k")
    files = dict(_file(text, used) for text in data)
    rows = []
    for row in ablation.rows:
        task = replace(row.task, data=files.get(row.task.name, row.task.data))
        if examples is not None and task.name == "gsm8k":
            task = replace(task, examples=examples)
        rows.append(replace(row, task=task))
    return replace(ablation, rows=tuple(rows))


def _file(text: str, used: Sequence[str]) -> tuple[str, Path]:
    task, equals, file = text.partition("=")
    if not equals:
        if len(used) > 1:
            raise ValueError(f"--data {text}: say of which task, such as {used[0]}={text}")
        return used[0], Path(text)
    if task not in used:
        raise ValueError(f"--data {text}: no row has the task {task!r}: {nearest(task, used)}")
    return task, Path(file)


def agreement(
    published: Published | None, summary: Summary | None, task: str, changed: str = ""
) -> str:
    """Returns whether a summary lies inside the tolerance, or why that says nothing.

    `changed` names what a command line replaced of the configuration's setting.
    """
    if published is None:
        return ""
    if published.accuracy is None:
        return f"not published: {published.because}"
    if published.differs:
        return f"not comparable: {published.differs}"
    if changed:
        return f"not comparable: {changed} is not the configuration's"
    if summary is None or not summary.scored:
        return "not measured" if summary is None else "not scored"
    whole = published.problems or FULL.get(task)
    if whole is None:
        return f"not comparable: 'problems' does not say how many {task} has"
    if summary.scored != whole:
        return f"limited run: {summary.scored:,} of {whole:,} problems"
    if published.score and published.score not in summary.scores:
        return f"not comparable: {task} has no score {published.score!r}"
    measured = summary.scores[published.score] if published.score else summary.accuracy
    low, high = published.tolerance(whole)
    side = "inside" if low <= 100 * measured <= high else "outside"
    return f"{side} {low:.1f}-{high:.1f}"
