"""An ablation's tables in a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from dllm.eval.report.tables import Table

_WORDS = {"run", "method", "note", "source", "inside its tolerance?", "now right"}


def printed(heading: str, table: Table) -> RichTable:
    """Returns a table whose columns of words fold and whose columns of figures do not."""
    shown = RichTable(title=heading, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, head in enumerate(table[0]):
        if index == 0 or head in _WORDS or "," in head:
            shown.add_column(head, overflow="fold")
        else:
            shown.add_column(head.replace("/", "/\n").replace(" (", "\n("), justify="right")
    for row in table[1:]:
        shown.add_row(*map(Text, row))
    return shown
