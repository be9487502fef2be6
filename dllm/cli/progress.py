"""The progress bars of evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dllm.eval.run.results import Result


def bars(*, quiet: bool = False) -> Progress:
    """Returns the display on stderr, which `shown` adds its bars to; a quiet one shows nothing."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    right = TextColumn("{task.fields[right]:.0%} right")
    shown = (*columns, right, TimeRemainingColumn())
    return Progress(*shown, disable=quiet, console=Console(stderr=True, quiet=quiet))


def shown(
    progress: Progress, label: str, results: Iterable[Result], total: int
) -> Iterator[Result]:
    """Yields the results while a bar of their own says how many there are and how many right."""
    bar = progress.add_task(label, total=total, right=0.0)
    right = 0
    for count, result in enumerate(results, start=1):
        right += bool(result.correct)
        progress.update(bar, advance=1, right=right / count)
        yield result
