"""SMILES: what is read, what its grammar holds, and what counts as the same molecule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.constraints.grammar import Grammar
from dllm.eval.tasks import find_task
from dllm.eval.tasks.smiles import DEPTH, GRAMMAR, is_valid
from dllm.eval.tasks.task import TaskOptions
from tests.support import DATA

FILE = DATA / "smiles.jsonl"
# Of the OpenSMILES specification, and of daily life.
VALID = [
    *("C", "CCO", "C=O", "C#N", "[Na+].[Cl-]", "[13CH4]", "[OH3+]", "[Cu++]", "[CH3:1]C"),
    *("CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "C1CCCCC1", "C%12CCCCC%12"),
    *("F/C=C/F", "N[C@@H](C)C(=O)O", "[cH-]1cccc1.[Fe+2].[cH-]1cccc1", "C[n+]1ccccc1", "[U]"),
    *("FC(F)(F)C(Cl)(Br)I", "[Co@SP1](Cl)(F)(Br)N", "[se]1cccc1", "C12C3C4C1C5C4C3C25"),
]
INVALID = [
    *("", "C(", "C)", "()", "C(C", "[C", "C]", "[]", "[Xx]", "C==C", "=C", "C=", "(C)C", "Cc1%1"),
    *("C C", "C.", ".C", "[C++-]", "[H5]C]", "hello", "C1CC1 ", "[1000C]", "C(.)", "[C@@@H]"),
]


@pytest.mark.parametrize("smiles", VALID)
def test_a_valid_smiles_is_in_the_grammar(smiles: str) -> None:
    assert is_valid(smiles)
    assert language().accepts(smiles.encode())


@pytest.mark.parametrize("smiles", INVALID)
def test_what_is_none_is_not(smiles: str) -> None:
    assert not is_valid(smiles)
    assert not language().accepts(smiles.encode())


def language() -> Any:
    return Grammar(GRAMMAR, depth=DEPTH).byte_automaton()


def task(**options: Any) -> Any:
    return find_task("smiles", TaskOptions(**{"data": FILE, **options}))


def test_answers_are_compared_as_molecules() -> None:
    read = task()
    ethanol, acid, alanine = read.take(10)
    assert read.judgement(ethanol, "OCC").correct
    assert read.judgement(ethanol, "OCC").details == {
        "valid": True,
        "exact": False,
        "molecule": True,
    }
    assert read.judgement(acid, "Here it is:\n```smiles\nc1ccccc1C(O)=O\n```\n").correct
    assert not read.judgement(alanine, "C[C@@H]([NH3+])C(=O)[O-]").correct  # its mirror image
    ring = read.judgement(ethanol, "C1CC")  # of the grammar, and no molecule
    assert (ring.correct, ring.details["valid"], ring.details["molecule"]) == (False, True, False)
    assert read.judgement(ethanol, "ethanol").details["valid"] is False


def test_answers_are_held_to_the_grammar() -> None:
    problems = task(style="plain").take(3)
    out = dllm.generate(
        dllm.load("tiny"),
        [problem.prompt for problem in problems],
        constraint=[problem.constraint for problem in problems],
        max_new_tokens=12,
    )
    assert all(map(is_valid, out.texts or ("no",))), out.texts


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"data": None}, "", r"smiles: name the file with --data FILE"),
    ({"shots": 2}, "", "--shots, --examples, --run-code"),
    ({}, '{"input": "water"}', "line 1 has no field 'output'.*its fields are: input"),
    ({}, '{"input": ["water"], "output": "O"}', "line 1, field 'input'"),
]


@pytest.mark.parametrize(("options", "line", "message"), BAD)
def test_what_is_wrong_is_said(
    options: dict[str, Any], line: str, message: str, tmp_path: Path
) -> None:
    if line:
        (tmp_path / "a.jsonl").write_text(line + "\n", encoding="utf-8")
        options = {"data": tmp_path / "a.jsonl"}
    with pytest.raises(ValueError, match=message):
        task(**options)
