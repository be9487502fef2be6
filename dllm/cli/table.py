"""The table that compares runs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from dllm.eval.summary import Summary


def comparison(title: str, summaries: Sequence[Summary]) -> Table:
    """Returns one row a run, accuracy with its interval and what it cost; fits 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("scheduler", "cache"):
        table.add_column(name, overflow="fold", min_width=6)
    numbers = ("accuracy", "95 %", "forwards", "tokens/\nforward", "tokens\nfed", "tokens/\nsecond")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for summary in summaries:
        table.add_row(
            summary.scheduler,
            summary.cache,
            f"{summary.accuracy:.1%}",
            f"{100 * summary.accuracy_low:.0f}-{summary.accuracy_high:.0%}",
            f"{summary.forwards:.1f}",
            f"{summary.tokens_per_forward:.2f}",
            f"{summary.tokens_fed:.0f}",
            f"{summary.tokens_per_second:.0f}",
        )
    return table
