"""The table of `dllm cache-error`: in the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from dllm.cli.paths import check_writable
from dllm.eval.compare.cache_error_run import CacheError, CacheErrorRun, Observed
from dllm.eval.tasks import Task
from dllm.eval.tasks.task import Problem
from dllm.settings import DEFAULT_BLOCK_LENGTH

LEGEND = (
    "Each pass of the cached run beside a full pass over the same canvas, at the columns that "
    "could be committed: logit error, KL(exact || cached) in nats, how often the proposed token "
    "and the most confident column are the same, Spearman's rho of confidence. Same output: "
    "tokens equal to those of the run without a cache. Age: passes since attended keys were "
    "written."
)
_SMALL = 0.01
HEADS: dict[str, Callable[[CacheError], str]] = {
    "cache": lambda row: row.cache,
    "mean error": lambda row: _short(row.mean_error),
    "max error": lambda row: _short(row.max_error),
    "KL": lambda row: _short(row.divergence),
    "same token %": lambda row: _part(row.same_tokens),
    "same first %": lambda row: _part(row.same_first),
    "rho": lambda row: "-" if row.rank_correlation is None else f"{row.rank_correlation:.2f}",
    "same output %": lambda row: _part(row.same_output),
    "right %": lambda row: _part(row.correct),
    "forwards": lambda row: f"{row.forwards:.1f}",
    "FLOPs saved %": lambda row: _part(row.flops_saved),
    "mean age": lambda row: f"{row.mean_age:.1f}",
    "max age": lambda row: f"{row.max_age:.0f}",
}


@dataclass(frozen=True)
class Subject:
    """What is decoded, and how it is judged if it is a task."""

    name: str
    prompts: Sequence[str]
    task: Task | None = None
    problems: Sequence[Problem] = ()

    def right(self, parts: Sequence[Observed]) -> float | None:
        """Returns the part of the answers that are right; None where nobody knows."""
        texts = [text for part in parts for text in part.output.texts or ()]
        if self.task is None or not texts:
            return None
        pairs = zip(self.problems, texts, strict=True)
        return sum(self.task.is_correct(problem, text) for problem, text in pairs) / len(texts)


@dataclass(frozen=True)
class Destination:
    """Where the figures go."""

    output: Path | None  # the table
    passes: Path | None  # a line for each pass
    as_json: bool

    def __post_init__(self) -> None:
        allowed = {"output": (".csv", ".md"), "passes": (".csv",)}
        for name, endings in allowed.items():
            path: Path | None = getattr(self, name)
            if path is not None and path.suffix not in endings:
                raise ValueError(f"{name}={str(path)!r} must end in {' or '.join(endings)}")
            mark = "| cache |" if path is not None and path.suffix == ".md" else "mean_error"
            check_writable(path, f"--{name}", mark)


def heading(audit: CacheErrorRun) -> str:
    """Returns what every cache has in common."""
    settings, model = audit.settings, audit.model
    own = min(DEFAULT_BLOCK_LENGTH, settings.max_new_tokens)
    block = settings.block_length or model.spec.block_length or own
    return (
        f"{model.name}: {len(audit.prompts)} prompts, {settings.max_new_tokens} new tokens, "
        f"blocks of {block}, batch {audit.batch_size}"
    )


def said(part: Observed) -> str:
    """Returns what a progress bar says of a batch."""
    return f"error {_short(float(part.entries.mean_error.mean()))}"


def error_table(title: str, found: Sequence[CacheError]) -> Table:
    """Returns one row a cache; fits 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for head in HEADS:
        if head == "cache":
            table.add_column(head, overflow="fold", min_width=8)
        else:
            table.add_column(
                head.replace("forwards", "for- wards").replace(" ", "\n"),
                justify="right",
                no_wrap=True,
            )
    for row in found:
        table.add_row(*(Text(cell(row)) for cell in HEADS.values()))
    return table


def write(path: Path, title: str, found: Sequence[CacheError]) -> None:
    """Writes all figures as CSV, or the table as Markdown, by the name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        records = [asdict(row) for row in found]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
        return
    rows = [list(HEADS), ["---", *["---:"] * (len(HEADS) - 1)]]
    rows += [[cell(row) for cell in HEADS.values()] for row in found]
    table = ["| " + " | ".join(row) + " |" for row in rows]
    path.write_text("\n".join([f"{title}.", "", *table, "", LEGEND, ""]), encoding="utf-8")


def write_passes(path: Path, cache: str, parts: Sequence[Observed], *, first: bool) -> None:
    """Writes a line for each pass of each prompt, behind those of the caches before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if first else "a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        start = 0
        for number, part in enumerate(parts):
            if first and number == 0:
                writer.writerow(["cache", "prompt", *list(vars(part.entries))[1:]])
            for row, *figures in (record.values() for record in part.entries.records()):
                writer.writerow([cache, start + int(row), *figures])
            start += len(part.output.sequences)


def _short(value: float) -> str:
    """Returns a number in at most six characters, 0 only if it is exactly that."""
    if value == 0:
        return "0"
    return f"{value:.2g}" if value >= _SMALL else f"{value:.0e}"


def _part(value: float | None) -> str:
    """Returns a part in percent; 0 and 100 only if it is exactly that."""
    if value is None:
        return "-"
    return f"{100 * value:.0f}" if value in (0, 1) else f"{100 * value:.1f}"
