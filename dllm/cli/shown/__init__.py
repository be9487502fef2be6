"""What commands show, on a terminal on which nothing that a file or a model says is obeyed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dllm.trace.text import visible

_WIDEST = 1000  # columns of a table
_FOLDED = 8  # columns of a terminal that words get at least


class Terminal(Console):
    """A console that shows control characters of what it prints instead of acting on them.

    An answer, a prompt or a name in a file may hold the sequences by which a program moves the
    cursor, sets the title or types for the user; only the console's own ones get through.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, highlight=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yields the segments of something, in whose texts control characters are pictures."""
        if isinstance(renderable, Text) and visible(renderable.plain) != renderable.plain:
            renderable = _shown(renderable, self)
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def print_table(self, table: Table) -> None:
        """Prints a table whole: words fold, and no figure is cut or divided.

        A figure that lost a digit at its end would be another figure. Where the terminal is too
        narrow for them side by side, each row becomes lines of `head: value`.
        """
        room = self.options.update(width=_WIDEST)
        for column in table.columns:
            cells = (column.header, *column.cells)
            widest = max(Measurement.get(self, room, cell).maximum for cell in cells)
            is_broken = column.no_wrap  # into lines already, where its options end
            if is_broken or column.justify == "right" or all(map(_is_figure, column.cells)):
                column.no_wrap, column.min_width = True, widest
            else:
                column.no_wrap, column.overflow = False, "fold"
                column.min_width = max(column.min_width or 0, min(widest, _FOLDED))
        for column in table.columns:
            column.max_width = column.min_width
        least = Measurement.get(self, room, table).minimum
        for column in table.columns:
            column.max_width = None
        if least <= self.width:
            self.print(table)
        else:
            self._print_records(table)

    def _print_records(self, table: Table) -> None:
        """Prints each row of a table as lines of head and value."""
        if table.title:
            self.print(table.title, markup=False, style="italic")
        for row in zip(*(column.cells for column in table.columns), strict=True):
            self.print()
            for column, cell in zip(table.columns, row, strict=True):
                head = " ".join(str(column.header).replace("/\n", "/").replace("-\n", "").split())
                # A name may have been broken into lines for its column.
                value = str(cell).replace("\n", "")
                self.print(Text(f"{head}: {value}" if head else value), overflow="fold")


def _is_figure(cell: RenderableType) -> bool:
    text = str(cell)
    return text[:1].isdigit() or text in ("", "-")


def _shown(text: Text, console: Console) -> Text:
    """Returns a text as it can be shown, before it is broken into lines."""
    pieces = [(visible(piece), style or "") for piece, style, _ in text.render(console, end="")]
    shown = text.blank_copy()
    for piece, style in pieces:
        shown.append(piece, style)
    return shown


def say(text: str) -> None:
    """Prints a line on stderr, beside what a command prints or writes."""
    Terminal(stderr=True).print(visible(text), markup=False, soft_wrap=True)


def say_there(there: int, total: int, output: Path) -> None:
    """Says how many answers are not made again, if any, and how to make them."""
    if there:
        say(f"{there} of {total} were there already, in {output}; --fresh starts anew")
