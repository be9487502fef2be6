"""`Template`: fixed text with holes, each with a constraint and a length of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from dllm.constraints.automaton import ByteAutomaton
from dllm.constraints.base import Constraint, Kind
from dllm.constraints.regular.determinise import automaton_of
from dllm.constraints.regular.expression import (
    ANY,
    Expression,
    Known,
    Repeated,
    Sequence,
    check_text,
    literal,
)

AUTO = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)  # tokens that an "auto" hole is tried with
CAL = "cal"  # the length is what probes of the masked hole say (dllm.infilling.cal)

Lengths = int | str | Sequenced[int]  # one, several, "auto" or "cal"


@dataclass(frozen=True)
class Hole:
    """A place for text: of any kind without a constraint.

    `tokens` are the slots of a canvas that its text fills to the last one, where the template is
    laid out: a number, several of which the best one wins, such as `(4, 8)` or `range(2, 9)`, or
    "auto" for those of `AUTO`; None is "auto". "cal" is the one of 1 to 64 that probes of the hole
    choose before anything is decoded, of a single hole without a constraint. A hole that ends the
    template is otherwise as long as the longest of its lengths, as its text may end before. To a
    constraint they say nothing.
    """

    constraint: Constraint | None = None
    tokens: Lengths | None = None

    def __post_init__(self) -> None:
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise TypeError(f"Hole({self.constraint!r}) takes a constraint, such as Regex")
        object.__setattr__(self, "tokens", _lengths(self.tokens))

    @property
    def expression(self) -> Expression:
        """The texts that fit."""
        if self.constraint is None:
            return Repeated(ANY)
        return Known(self.constraint.byte_automaton())


@dataclass(frozen=True)
class Template(Constraint):
    r"""Texts that begin, go on and end with fixed parts, with something in each hole between.

    `Template("Name: ", Regex("[A-Z][a-z]+"), "\nNote: ", Hole())` has two holes. A constraint is
    short for a hole with it. As a language it is one part after the other, whatever number of
    tokens each hole is given. As `template=` of a generation it is laid out on the canvas: fixed
    parts stand there from the beginning, and each hole has exactly so many slots. Raises ValueError
    where there is no hole, and where one hole accepts too much and another too little.
    """

    parts: tuple[str | Hole, ...]

    def __init__(self, *parts: str | Hole | Constraint) -> None:
        found = tuple(Hole(part) if isinstance(part, Constraint) else part for part in parts)
        for part in found:
            if not isinstance(part, str | Hole):
                raise TypeError(f"Template takes texts, holes and constraints, not {part!r}")
            if isinstance(part, str):
                check_text(part)
        if not any(isinstance(part, Hole) for part in found):
            raise ValueError(f"Template{parts!r} has no hole: add Hole() or a constraint")
        object.__setattr__(self, "parts", found)
        if {"over", "under"} <= self._kinds:
            raise ValueError(f"{self} has a hole that accepts too much and one that has too little")

    @staticmethod
    def between(
        prefix: str,
        suffix: str,
        tokens: Lengths = "auto",
        constraint: Constraint | None = None,
    ) -> Template:
        """Returns the template of one hole between two texts, such as the two ends of a file.

        What is between them can be asked for without any prompt.
        """
        return Template(prefix, Hole(constraint, tokens), suffix)

    @property
    def holes(self) -> tuple[Hole, ...]:
        """The holes in order."""
        return tuple(part for part in self.parts if isinstance(part, Hole))

    @property
    def source(self) -> str:
        return json.dumps([part if isinstance(part, str) else _named(part) for part in self.parts])

    @property
    def kind(self) -> Kind:
        for kind in ("over", "under"):
            if kind in self._kinds:
                return kind
        return "exact"

    def build(self) -> ByteAutomaton:
        return automaton_of(
            Sequence(
                tuple(
                    literal(part) if isinstance(part, str) else part.expression
                    for part in self.parts
                )
            )
        )

    @property
    def _kinds(self) -> set[Kind]:
        return {hole.constraint.kind for hole in self.holes if hole.constraint is not None}


def _lengths(given: Any) -> Lengths | None:
    """Returns lengths as a hole keeps them, several as a tuple; raises ValueError for others."""
    if given is None or (isinstance(given, str) and given in ("auto", CAL)):
        return given
    several = isinstance(given, Sequenced) and not isinstance(given, str)
    counts = tuple(given) if several else (given,)
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise ValueError(
                f"tokens={given!r} of a hole must be a whole number, several, such as (4, 8, 16) "
                'or range(2, 9), "auto" or "cal"'
            )
        if count < 1:
            raise ValueError(f"tokens={given!r} of a hole must be at least 1")
    if not counts:
        raise ValueError(f"tokens={given!r} of a hole names no length")
    found = tuple(dict.fromkeys(map(int, counts)))
    return found if several else found[0]


def _named(hole: Hole) -> list[str]:
    """Returns what a hole's texts depend on."""
    constraint = hole.constraint
    return [] if constraint is None else [type(constraint).__name__, constraint.source]
