"""The tables that compare runs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from dllm.eval.report.comparison import HEADS, cells
from dllm.eval.report.standings import Standing
from dllm.eval.run.summary import Summary

OTHER_COLUMNS = 60  # of a comparison's table, the folded verdict's among them


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
            f"{summary.accuracy:.1%}" if summary.scored else "-",
            f"{100 * summary.accuracy_low:.0f}-{summary.accuracy_high:.0%}"
            if summary.scored
            else "not scored",
            f"{summary.forwards:.1f}",
            f"{summary.tokens_per_forward:.2f}",
            f"{summary.tokens_fed:.0f}",
            f"{summary.tokens_per_second:.0f}",
        )
    return table


def standings_table(title: str, standings: Sequence[Standing], width: int) -> Table:
    """Returns one row a contender: accuracy, speed, and how it stands beside the threshold.

    `width` is the console's, of which the names get what the other columns can spare.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column(HEADS[0], no_wrap=True)
    for head in HEADS[1:-1]:
        narrow = head.replace("/", "/\n").replace(" (", "\n(").replace("row ", "row\n")
        table.add_column(narrow, justify="right", no_wrap=True)
    table.add_column(HEADS[-1], overflow="fold")
    for standing in standings:
        name, *others = cells(standing)
        table.add_row(_fold(name, max(width - OTHER_COLUMNS, 12)), *map(Text, others))
    return table


def _fold(name: str, room: int) -> Text:
    """Returns a short form in lines of at most `room`, broken between options if possible."""
    lines = [""]
    for part in re.split(r"(?<=[:, ])", name):
        if len(lines[-1]) + len(part) > room:
            lines.append("")
        lines[-1] += part
    return Text("\n".join(line[i : i + room] for line in lines for i in range(0, len(line), room)))
