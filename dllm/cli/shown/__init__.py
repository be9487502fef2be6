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
        """Prints a table whole: where the terminal is too narrow, its lines are longer than it.

        A figure that lost a digit at its end would be another figure.
        """
        own, room = self.width, self.options.update(width=_WIDEST)
        for column in (one for one in table.columns if one.no_wrap):
            cells = (column.header, *column.cells)
            column.min_width = max(Measurement.get(self, room, cell).maximum for cell in cells)
        self.width = max(own, Measurement.get(self, room, table).minimum)
        self.print(table)
        self.width = own


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
