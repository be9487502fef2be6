"""Word problems with one to five operations on numbers from 0 to 99."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import partial

from dllm.eval.tasks.task import DEFAULT_NUM, Problem, Split, Task, draw

NAMES = ("tom", "ann", "bob", "sue", "jack", "mia", "leo", "eva", "joe", "zoe", "sam", "amy")
THINGS = (
    *("pens", "eggs", "cards", "coins", "books", "apples"),
    *("shells", "stamps", "beads", "nuts", "keys", "cups"),
)
MORE = ("finds", "buys", "gets", "wins")
LESS = ("loses", "sells", "drops", "uses")
LARGEST = 99
MOST_OPERATIONS = 5


def problems(
    split: Split = "test", seed: int = 0, num: int = DEFAULT_NUM, operations: int | None = None
) -> Iterator[Problem]:
    """Yields word problems of a split, of one to five operations if their number is not fixed."""
    if operations is not None and not 1 <= operations <= MOST_OPERATIONS:
        raise ValueError(f"operations={operations} must be from 1 to {MOST_OPERATIONS}")
    return draw("arithmetic", partial(make, operations=operations), split, seed, num)


def extract(text: str) -> str | None:
    """Returns the number after the last `#### ` without leading zeros, None if there is none."""
    found = re.findall(r"#### (\d+)", text)
    return str(int(found[-1])) if found else None


def is_correct(problem: Problem, text: str) -> bool:
    """Whether a text gives the problem's answer."""
    return extract(text) == problem.answer


def stated(problem: Problem, text: str) -> str | None:
    """Returns the answer that a text states."""
    return extract(text)


TASK = Task("arithmetic", "word problems", problems, is_correct, stated=stated)


def step(value: int, source: random.Random) -> tuple[str, int, int]:
    """Returns an operation that keeps a value within 0..99: sign, operand, result."""
    factors = [k for k in range(2, 10) if value * k <= LARGEST]
    divisors = [k for k in range(2, 10) if value % k == 0]
    signs = ["+", "-"] + ["*"] * bool(factors and value) + ["/"] * bool(divisors and value)
    sign = source.choice(signs)
    if (sign == "+" and value == LARGEST) or (sign == "-" and value == 0):
        sign = "-" if sign == "+" else "+"
    if sign == "+":
        operand = source.randint(1, LARGEST - value)
        return sign, operand, value + operand
    if sign == "-":
        operand = source.randint(1, value)
        return sign, operand, value - operand
    operand = source.choice(factors if sign == "*" else divisors)
    return sign, operand, value * operand if sign == "*" else value // operand


def equation(value: int, sign: str, operand: int, result: int) -> str:
    """Returns one line of work; running values have two digits so that columns align."""
    return f"{value:02d}{sign}{operand}={result:02d}"


def make(source: random.Random, operations: int | None = None) -> tuple[str, str, str]:
    """Returns a prompt, its response and its answer, of one to five operations."""
    name, thing = source.choice(NAMES), source.choice(THINGS)
    value = source.randint(2, LARGEST)
    sentences, lines = [f"{name} has {value} {thing}."], []
    for _ in range(operations or source.randint(1, MOST_OPERATIONS)):
        sign, operand, result = step(value, source)
        sentences.append(_sentence(name, sign, operand, source))
        lines.append(equation(value, sign, operand, result))
        value = result
    prompt = " ".join([*sentences, f"how many {thing} does {name} have?"])
    return prompt, "; ".join([*lines, f"#### {value}"]), str(value)


def _sentence(name: str, sign: str, operand: int, source: random.Random) -> str:
    if sign == "+":
        return f"{name} {source.choice(MORE)} {operand} more."
    if sign == "-":
        return f"{name} {source.choice(LESS)} {operand}."
    if sign == "*":
        return f"then {name} has {operand} times as many."
    return f"{name} shares equally among {operand} people."
