"""Grids of four by four in which no row, column or box has a symbol twice."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, islice

from dllm.eval.tasks.parallel_bench.instance import Answer, Instance

SIZE = 4
BOX = 2
EMPTY = "_"
LETTERS = "ABCDEFGH"  # of Latin squares
FEWEST_GIVEN, MOST_GIVEN = 2, 6
NUM_CLUES = 12  # of sudokus
_BETWEEN = re.compile(r"[\s|,\[\]\"'`]+")  # cells, in whatever way a model writes a grid


@dataclass(frozen=True)
class Grid(Instance):
    """A grid with empty cells; one way to fill them is the solution to show."""

    cells: Answer  # row by row, EMPTY where nothing is given
    symbols: Answer
    boxes: bool  # whether boxes of two by two count as well
    rule: str  # what has to hold, in words
    solution: Answer

    @property
    def question(self) -> str:
        start = f"A grid, {EMPTY} is an empty cell:\n{self.write(self.cells)}\n"
        return f"{start}Fill it: {self.rule} Answer with the whole grid, in this form."

    def outputs(self) -> Iterator[Answer]:
        return completions(self.cells, self.symbols, self.boxes)

    def is_right(self, answer: Answer) -> bool:
        keeps = len(answer) == len(self.cells) and all(
            given in (EMPTY, cell) for given, cell in zip(self.cells, answer, strict=True)
        )
        return keeps and all(
            {answer[cell] for cell in unit} == set(self.symbols) for unit in units(self.boxes)
        )

    def write(self, answer: Answer) -> str:
        rows = [answer[start : start + SIZE] for start in range(0, len(answer), SIZE)]
        return "\n".join(" ".join(row) for row in rows)

    def read(self, text: str) -> Answer | None:
        """Returns the last four lines that hold four symbols each, and nothing else but marks."""
        lines = [[cell for cell in _BETWEEN.split(line) if cell] for line in text.splitlines()]
        rows = [row for row in lines if len(row) == SIZE and set(row) <= set(self.symbols)]
        return tuple(chain.from_iterable(rows[-SIZE:])) if len(rows) >= SIZE else None


@cache
def units(boxes: bool) -> tuple[frozenset[int], ...]:
    """Returns the cells of each row and column, and of each box if boxes count."""
    cells = [divmod(cell, SIZE) for cell in range(SIZE**2)]
    found: dict[tuple[str, int, int], set[int]] = {}
    for number, (row, column) in enumerate(cells):
        names = [("row", row, 0), ("column", 0, column), ("box", row // BOX, column // BOX)]
        for name in names if boxes else names[:2]:
            found.setdefault(name, set()).add(number)
    return tuple(map(frozenset, found.values()))


def completions(cells: Answer, symbols: Answer, boxes: bool) -> Iterator[Answer]:
    """Yields every way to fill the empty cells, in the order of the symbols."""
    if EMPTY not in cells:
        yield cells
        return
    place = cells.index(EMPTY)
    taken = {cells[cell] for unit in units(boxes) if place in unit for cell in unit}
    for symbol in symbols:
        if symbol not in taken:
            yield from completions((*cells[:place], symbol, *cells[place + 1 :]), symbols, boxes)


@cache
def full_grids(boxes: bool) -> tuple[tuple[int, ...], ...]:
    """Returns all full grids of 0 to 3: 576 Latin squares, 288 of which keep the boxes too."""
    digits = tuple(map(str, range(SIZE)))
    found = completions((EMPTY,) * SIZE**2, digits, boxes)
    return tuple(tuple(map(int, grid)) for grid in found)


def latin_square(source: random.Random) -> Grid:
    """Returns a random square of four letters with two to six given cells and some choice left."""
    symbols = tuple(sorted(source.sample(LETTERS, SIZE)))
    rule = f"each row and column has {', '.join(symbols)} once."
    empty = Grid((), symbols, False, rule, ())
    return _drawn(source, empty, lambda: source.randint(FEWEST_GIVEN, MOST_GIVEN), choice=True)


def sudoku(source: random.Random) -> Grid:
    """Returns a random sudoku of twelve given cells, drawn again until it has one solution."""
    rule = "each row, column and 2x2 box has 1, 2, 3, 4 once."
    empty = Grid((), ("1", "2", "3", "4"), True, rule, ())
    return _drawn(source, empty, lambda: NUM_CLUES, choice=False)


def _drawn(source: random.Random, empty: Grid, num_given: Callable[[], int], choice: bool) -> Grid:
    """Returns a random grid of that kind, with several solutions or with one."""
    while True:
        digits = source.choice(full_grids(empty.boxes))
        filled = tuple(empty.symbols[digit] for digit in digits)
        given = set(source.sample(range(SIZE**2), num_given()))
        cells = tuple(s if cell in given else EMPTY for cell, s in enumerate(filled))
        grid = replace(empty, cells=cells, solution=filled)
        if len(list(islice(grid.outputs(), 2))) == 1 + choice:
            return grid
