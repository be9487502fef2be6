"""Ten operations on a waiting line, some with one right result and some with many."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from dllm.eval.tasks.parallel_bench.instance import Answer, Instance

NAMES = (
    *("Ada", "Ben", "Cleo", "Dora", "Emil", "Faye", "Gus", "Hana", "Igor", "Jane"),
    *("Kurt", "Lena", "Max", "Nina", "Otto", "Pia", "Quinn", "Rosa", "Sven", "Tara"),
    *("Ugo", "Vera", "Walt", "Xenia", "Yuri", "Zara", "Abel", "Bela", "Carl", "Dina"),
    *("Elsa", "Finn", "Gina", "Hugo", "Iris", "Jack", "Kira", "Leon", "Mona", "Noel"),
    *("Olga", "Paul", "Rita", "Seth", "Tess", "Umar", "Vito", "Wanda", "York", "Zeno"),
)
_AROUND = " \t\r\n\"'`*\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"  # an item


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
    results: Callable[[Line], Iterable[Answer]]
    more_places: int = 0  # behind the last name


@dataclass(frozen=True)
class WaitingLine(Instance):
    """A line with an operation."""

    operation: str
    line: Line
    solution: Answer  # a result, drawn at random

    @property
    def question(self) -> str:
        instruction = OPERATIONS[self.operation].instruction
        asked = instruction.format(new=self.line.new, place=self.line.place)
        form = "Answer with the whole line, written as [first, second, ...]."
        return f"A waiting line, front first: {self.write(self.line.names)}. {asked} {form}"

    def outputs(self) -> Iterator[Answer]:
        return iter(OPERATIONS[self.operation].results(self.line))

    def is_right(self, answer: Answer) -> bool:
        if self.operation == "shuffle":  # whose outputs are too many to go through
            return answer != self.line.names and sorted(answer) == sorted(self.line.names)
        return answer in self.outputs()

    def write(self, answer: Answer) -> str:
        return write_list(answer)

    def read(self, text: str) -> Answer | None:
        return read_list(text)


def write_list(items: Sequence[str]) -> str:
    """Returns the one form of a list: `[a, b, c]`."""
    return f"[{', '.join(items)}]"


def read_list(text: str) -> Answer | None:
    """Returns the items between the last `[` and the first `]` after it, None without both.

    Spaces, line ends, quotes and marks of emphasis around an item are no part of it. An item may
    be empty: `[a,]` has two, `[]` none.
    """
    _, opened, after = text.rpartition("[")
    inside, closed, _ = after.partition("]")
    if not (opened and closed):
        return None
    return tuple(item.strip(_AROUND) for item in inside.split(",")) if inside.strip() else ()


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


def _shuffled(line: Line) -> Iterator[Answer]:
    return (order for order in permutations(line.names) if order != line.names)


def _inserted(line: Line) -> Answer:
    return (*line.names[: line.place - 1], line.new, *line.names[line.place - 1 :])


def _removed(line: Line) -> Answer:
    return line.names[: line.place - 1] + line.names[line.place :]


def _replaced(line: Line) -> Answer:
    return (*line.names[: line.place - 1], line.new, *line.names[line.place :])


def _anywhere(result: Callable[[Line], Answer], line: Line, more_places: int = 0) -> list[Answer]:
    last = len(line.names) + more_places
    return [result(Line(line.names, line.new, place)) for place in range(1, last + 1)]


_COUNTED = "counted from 1 at the front"
OPERATIONS = {
    "copy": Operation("Leave it as it is.", lambda line: [line.names]),
    "reverse": Operation("Turn the line back to front.", lambda line: [line.names[::-1]]),
    "sort": Operation("Put it into alphabetical order.", lambda line: [tuple(sorted(line.names))]),
    "shuffle": Operation("Mix the people into any other order.", _shuffled),
    "insert_index": Operation(
        f"{{new}} joins as person number {{place}}, {_COUNTED}.",
        lambda line: [_inserted(line)],
        more_places=1,
    ),
    "insert_random": Operation(
        "{new} joins at any place.", lambda line: _anywhere(_inserted, line, more_places=1)
    ),
    "remove_index": Operation(
        f"Person number {{place}}, {_COUNTED}, leaves.", lambda line: [_removed(line)]
    ),
    "remove_random": Operation("Any one person leaves.", lambda line: _anywhere(_removed, line)),
    "replace_index": Operation(
        f"{{new}} takes the place of person number {{place}}, {_COUNTED}.",
        lambda line: [_replaced(line)],
    ),
    "replace_random": Operation(
        "{new} takes the place of any one person.", lambda line: _anywhere(_replaced, line)
    ),
}
