"""Sudokus of four by four with twelve given cells and one solution."""

from __future__ import annotations

import random
from itertools import islice

from dllm.eval.tasks.parallel_bench.grid import EMPTY, SIZE, Grid, completions, full_grids

NUM_CLUES = 12
_SYMBOLS = ("1", "2", "3", "4")
_RULE = "each row, column and 2x2 box has 1, 2, 3, 4 once."


def make(source: random.Random) -> Grid:
    """Returns a random sudoku, drawn again until it has no second solution."""
    while True:
        filled = tuple(_SYMBOLS[digit] for digit in source.choice(full_grids(boxes=True)))
        given = set(source.sample(range(SIZE**2), NUM_CLUES))
        cells = tuple(s if cell in given else EMPTY for cell, s in enumerate(filled))
        if len(list(islice(completions(cells, _SYMBOLS, True), 2))) == 1:
            return Grid(cells, _SYMBOLS, True, _RULE, filled)
