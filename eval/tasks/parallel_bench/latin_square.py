"""Latin squares with a few given cells and at least two ways to go on."""

from __future__ import annotations

import random
from itertools import islice

from dllm.eval.tasks.parallel_bench.grid import EMPTY, SIZE, Grid, completions, full_grids

LETTERS = "ABCDEFGH"
FEWEST_GIVEN, MOST_GIVEN = 2, 6


def make(source: random.Random) -> Grid:
    """Returns a random square of four letters, two to six cells of which are given."""
    symbols = tuple(sorted(source.sample(LETTERS, SIZE)))
    rule = f"each row and column has {', '.join(symbols)} once."
    while True:
        filled = tuple(symbols[digit] for digit in source.choice(full_grids(boxes=False)))
        given = set(source.sample(range(SIZE**2), source.randint(FEWEST_GIVEN, MOST_GIVEN)))
        cells = tuple(s if cell in given else EMPTY for cell, s in enumerate(filled))
        if len(list(islice(completions(cells, symbols, False), 2))) == 2:
            return Grid(cells, symbols, False, rule, filled)
