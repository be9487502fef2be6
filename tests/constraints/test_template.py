"""Templates: the texts of fixed parts and holes, one after the other."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from dllm.constraints import Choice, Hole, JsonSchema, Regex, Template


def test_a_template_is_its_parts_in_a_row() -> None:
    template = Template("a", Regex("b*"), "b", Hole(Choice(["a", "ba"])), Hole(tokens=3))
    automaton = template.byte_automaton()
    for size in range(7):
        for text in map("".join, itertools.product("ab\n", repeat=size)):
            expected = bool(re.fullmatch(r"ab*b(a|ba)(?s:.*)", text))
            assert automaton.accepts(text.encode()) == expected


def test_the_parts_are_kept_for_the_canvas() -> None:
    template = Template("x: ", Regex("[0-9]+"), ".", Hole(tokens=4))
    assert template.parts == ("x: ", Hole(Regex("[0-9]+")), ".", Hole(None, 4))
    assert template.holes == (template.parts[1], template.parts[3])
    # How many tokens a hole has is no part of the language.
    assert template.source == Template("x: ", Regex("[0-9]+"), ".", Hole()).source
    assert template.source != Template("x: ", Choice(["[0-9]+"]), ".", Hole()).source


def test_the_kind_is_that_of_the_holes() -> None:
    assert Template("a", Hole()).kind == "exact"
    assert Template("a", JsonSchema({}), Hole()).kind == "under"


def test_lengths_are_kept_as_numbers_each_once() -> None:
    assert Hole(tokens=range(2, 5)).tokens == (2, 3, 4)
    assert Hole(tokens=[4, 2, 4]).tokens == (4, 2)
    assert Hole(tokens=(3,)) != Hole(tokens=3)
    assert Hole(tokens=np.int64(3)) == Hole(tokens=3)
    assert Hole(tokens="auto").tokens == "auto"
    for wrong in ("4", 2.5, True, (2, "4"), [None]):
        with pytest.raises(ValueError, match=r"must be a whole number, several, such as"):
            Hole(tokens=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tokens=\(3, 0\) of a hole must be at least 1"):
        Hole(tokens=(3, 0))
    with pytest.raises(ValueError, match=r"tokens=range\(0, 0\) of a hole names no length"):
        Hole(tokens=range(0))


def test_templates_that_are_refused() -> None:
    with pytest.raises(ValueError, match="has no hole: add Hole"):
        Template("a")
    with pytest.raises(TypeError, match="takes texts, holes and constraints, not 3"):
        Template("a", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens=0 of a hole must be at least 1"):
        Hole(tokens=0)
    with pytest.raises(TypeError, match="takes a constraint"):
        Hole("a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        Template("\ud800", Hole())
    with pytest.raises(ValueError, match="accepts no text at all"):
        Template("a", Regex(r"[^\s\S]")).byte_automaton()
