"""The table that compares runs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from dllm.eval.summary import Summary


def comparison(title: str, summaries: Sequence[Summary]) -> Table:
    """Returns one row a run: accuracy with its interval, and what it cost."""
    table = Table(title=title, title_justify="left")
    for name in ("scheduler", "cache"):
        table.add_column(name, overflow="fold")
    for name in ("accuracy", "95 %", "forwards", "tokens/forward", "tokens fed", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for summary in summaries:
        table.add_row(
            summary.scheduler,
            summary.cache,
            f"{summary.accuracy:.1%}",
            f"{summary.accuracy_low:.0%}-{summary.accuracy_high:.0%}",
            f"{summary.forwards:.1f}",
            f"{summary.tokens_per_forward:.2f}",
            f"{summary.tokens_fed:.0f}",
            f"{summary.tokens_per_second:.0f}",
        )
    return table
