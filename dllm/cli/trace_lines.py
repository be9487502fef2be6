"""Tokens in lines of a terminal, divided between tokens and not inside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.style import Style
from rich.text import Text


@dataclass(frozen=True)
class Cell:
    """A text with its style, and the canvas column that it stands for, -1: none."""

    column: int
    text: str
    style: Style


@dataclass(frozen=True)
class Lines:
    """Lines, and the one in which each column begins."""

    lines: list[Text]
    line_of: dict[int, int]


def in_lines(cells: Iterable[Cell], width: int) -> Lines:
    """Returns cells in lines of at most `width`; only a token wider than that is divided."""
    lines, used = [Text()], 0
    line_of: dict[int, int] = {}
    for cell in cells:
        for number, part in enumerate(cell.text.split("\n")):
            if number:
                lines.append(Text())
                used = 0
            for chunk in [part] if cell_len(part) <= width else chop_cells(part, width):
                if used + cell_len(chunk) > width:
                    lines.append(Text())
                    used = 0
                line_of.setdefault(cell.column, len(lines) - 1)
                lines[-1].append(chunk, cell.style)
                used += cell_len(chunk)
    return Lines(lines, line_of)
