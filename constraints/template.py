"""`Template`: fixed text with holes, each with a constraint of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Hole:
    """A place for text: of any kind without a constraint, of any length without `tokens`."""

    constraint: Constraint | None = None
    tokens: int | None = None  # slots of the canvas, all of which the text takes

    def __post_init__(self) -> None:
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise TypeError(f"Hole({self.constraint!r}) takes a constraint, such as Regex")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens={self.tokens} of a hole must be at least 1")

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
    tokens each hole is given; `parts` says how a canvas is laid out. Raises ValueError where there
    is no hole, and where one hole accepts too much and another too little.
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


def _named(hole: Hole) -> list[str]:
    """Returns what a hole's texts depend on."""
    constraint = hole.constraint
    return [] if constraint is None else [type(constraint).__name__, constraint.source]
