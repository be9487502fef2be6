"""Ten operations on a waiting line, some with one right result and some with many."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations

from dllm.eval.tasks.parallel_bench.instance import Answer, Instance
from dllm.eval.tasks.parallel_bench.list_text import read_list, write_list
from dllm.eval.tasks.parallel_bench.names import NAMES


@dataclass(frozen=True)
class Line:
    """The people in line, and what an operation may want to know beside them."""

    names: Answer  # all different
    new: str  # somebody who is not in the line
    place: int  # from 1; for an insertion one more than there are names


@dataclass(frozen=True)
class Operation:
    """What is asked, and all results that are right."""

    instruction: str  # with a place for {new} and {place}
    results: Callable[[Line], Iterator[Answer]]
    more_places: int = 0  # behind the last name


@dataclass(frozen=True)
class WaitingLine(Instance):
    """A line with an operation; one result was drawn as the solution to show."""

    operation: str
    line: Line
    shown: Answer

    @property
    def question(self) -> str:
        instruction = OPERATIONS[self.operation].instruction
        asked = instruction.format(new=self.line.new, place=self.line.place)
        form = "Answer with the whole line, written as [first, second, ...]."
        return f"A waiting line, front first: {self.write(self.line.names)}. {asked} {form}"

    @property
    def solution(self) -> Answer:
        return self.shown

    def outputs(self) -> Iterator[Answer]:
        return OPERATIONS[self.operation].results(self.line)

    def is_right(self, answer: Answer) -> bool:
        if self.operation == "shuffle":  # whose outputs are too many to go through
            return answer != self.line.names and sorted(answer) == sorted(self.line.names)
        return answer in self.outputs()

    def write(self, answer: Answer) -> str:
        return write_list(answer)

    def read(self, text: str) -> Answer | None:
        return read_list(text)


def make(source: random.Random, num_names: int, operation: str) -> WaitingLine:
    """Returns a random line of that many names with an operation."""
    *names, new = source.sample(NAMES, num_names + 1)
    place = source.randint(1, num_names + OPERATIONS[operation].more_places)
    line = Line(tuple(names), new, place)
    return WaitingLine(operation, line, _any_result(source, operation, line))


def _any_result(source: random.Random, operation: str, line: Line) -> Answer:
    if operation != "shuffle":
        return source.choice(list(OPERATIONS[operation].results(line)))
    while True:
        shuffled = tuple(source.sample(line.names, len(line.names)))
        if shuffled != line.names:
            return shuffled


def _copy(line: Line) -> Iterator[Answer]:
    yield line.names


def _reverse(line: Line) -> Iterator[Answer]:
    yield line.names[::-1]


def _sort(line: Line) -> Iterator[Answer]:
    yield tuple(sorted(line.names))


def _shuffle(line: Line) -> Iterator[Answer]:
    return (order for order in permutations(line.names) if order != line.names)


def _insert_index(line: Line) -> Iterator[Answer]:
    yield (*line.names[: line.place - 1], line.new, *line.names[line.place - 1 :])


def _remove_index(line: Line) -> Iterator[Answer]:
    yield line.names[: line.place - 1] + line.names[line.place :]


def _replace_index(line: Line) -> Iterator[Answer]:
    yield (*line.names[: line.place - 1], line.new, *line.names[line.place :])


def _anywhere(
    results: Callable[[Line], Iterator[Answer]], line: Line, more: int
) -> Iterator[Answer]:
    for place in range(1, len(line.names) + more + 1):
        yield from results(Line(line.names, line.new, place))


_COUNTED = "counted from 1 at the front"
OPERATIONS = {
    "copy": Operation("Leave it as it is.", _copy),
    "reverse": Operation("Turn the line back to front.", _reverse),
    "sort": Operation("Put it into alphabetical order.", _sort),
    "shuffle": Operation("Mix the people into any other order.", _shuffle),
    "insert_index": Operation(
        f"{{new}} joins as person number {{place}}, {_COUNTED}.", _insert_index, more_places=1
    ),
    "insert_random": Operation(
        "{new} joins at any place.", lambda line: _anywhere(_insert_index, line, 1)
    ),
    "remove_index": Operation(f"Person number {{place}}, {_COUNTED}, leaves.", _remove_index),
    "remove_random": Operation(
        "Any one person leaves.", lambda line: _anywhere(_remove_index, line, 0)
    ),
    "replace_index": Operation(
        f"{{new}} takes the place of person number {{place}}, {_COUNTED}.", _replace_index
    ),
    "replace_random": Operation(
        "{new} takes the place of any one person.",
        lambda line: _anywhere(_replace_index, line, 0),
    ),
}
