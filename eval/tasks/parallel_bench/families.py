"""The kinds of questions, by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from dllm.eval.tasks.parallel_bench import latin_square, sudoku, waiting_line
from dllm.eval.tasks.parallel_bench.instance import Instance

# Makers of an instance from a source of randomness and the number of names in a line.
FAMILIES: dict[str, Callable[[random.Random, int], Instance]] = {
    **{name: partial(waiting_line.make, operation=name) for name in waiting_line.OPERATIONS},
    "latin_square": lambda source, _: latin_square.make(source),
    "sudoku": lambda source, _: sudoku.make(source),
}
