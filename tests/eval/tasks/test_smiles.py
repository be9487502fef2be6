"""SMILES: what the grammar has, which file is read, and when an answer is the molecule."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import dllm
from dllm.constraints import Grammar
from dllm.eval.tasks import find_task, smiles
from dllm.eval.tasks.task import TaskOptions
from tests.support import DATA
from tests.support.schemas import random_text
from tests.support.vocabularies import large_byte_level

FILE = DATA / "smiles.jsonl"
VALID = (
    *("C1=CC=CC=C1", "[nH]1cccc1", "CC(=O)Oc1ccccc1C(=O)O", "C[C@@H](N)C(=O)O", "[13CH4]"),
    *(
        "[Na+].[Cl-]",
        "F/C=C\\F",
        "C%12CCC%12",
        "[NH4+:1]",
        "[Fe+3]",
        "[se]1cccc1",
        "C$C",
        "C(C)(.O)C",
    ),
    "C(C(C(C(C(C(C(C(C))))))))",
)
INVALID = (
    "",
    "(C)",
    "C(",
    "C)",
    "[Xx]",
    "C==C",
    "C@",
    "C()",
    "[C",
    "C%1",
    "C..C",
    "ethanol",
    "C C",
)


@pytest.mark.parametrize("text", VALID)
def test_smiles_are_in_the_grammar(text: str) -> None:
    assert smiles.is_smiles(text)


@pytest.mark.parametrize("text", INVALID)
def test_other_texts_are_not(text: str) -> None:
    assert not smiles.is_smiles(text)


@pytest.mark.slow
def test_what_answers_are_held_to_is_in_the_grammar() -> None:
    automaton, source = Grammar(smiles.GRAMMAR, depth=2).byte_automaton(), random.Random(0)
    texts = [random_text(automaton, source, 40) for _ in range(100)]
    assert all(smiles.is_smiles(bytes(text).decode()) for text in texts)
    for text in VALID[:-1]:
        assert automaton.accepts(text.encode())


def test_a_model_of_noise_writes_smiles_where_it_must() -> None:
    tokenizer = large_byte_level(600, seed=0)
    size, source = len(tokenizer), torch.Generator().manual_seed(0)
    logits = torch.randn(1, 64, size, generator=source)
    model = dllm.wrap(
        lambda tokens: logits[:, : tokens.shape[1]], vocab_size=size, tokenizer=tokenizer
    )
    grammar = Grammar(smiles.GRAMMAR, depth=1)
    out = dllm.generate(model, [[0, 1, 2]], constraint=grammar, max_new_tokens=24)
    assert out.texts is not None
    assert smiles.is_smiles(out.texts[0])


def test_with_rdkit_the_molecule_counts() -> None:
    pytest.importorskip("rdkit")
    task = find_task("smiles", TaskOptions(data=FILE))
    ring, ethanol, *_ = task.take(6)
    other = task.judgement(ring, "c1ccccc1")
    assert other.correct
    assert other.details == {"valid": True, "exact": False, "molecule": True}
    assert task.is_correct(ethanol, "It is\n```smiles\nOCC\n```\n")
    for text in (
        "CCN",
        "C1CC",
        "C(C)(C)(C)(C)C",
        "I think it is CCO.",
    ):  # the last are no molecules
        assert task.judgement(ethanol, text).correct is False
    assert task.options["compared"] == "molecule"


def test_without_rdkit_the_text_counts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(smiles, "find_spec", lambda _: None)
    with caplog.at_level(logging.WARNING):
        task = find_task("smiles", TaskOptions(data=FILE))
    assert "dllm[smiles] compares molecules" in caplog.text
    ring = task.take(1)[0]
    assert task.judgement(ring, "c1ccccc1").details == {"valid": True, "exact": False}
    assert task.is_correct(ring, f" {ring.response}\n")
    assert task.options["compared"] == "text"


def test_problems_are_chats_held_to_the_grammar() -> None:
    problem = find_task("smiles", TaskOptions(data=FILE)).take(1)[0]
    assert problem.turns == (("user", problem.prompt),)
    assert "alternating double bonds" in problem.prompt
    assert problem.constraint == Grammar(smiles.GRAMMAR, depth=smiles.DEPTH)
    assert find_task("smiles", TaskOptions(data=FILE, style="plain")).take(1)[0].turns == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"input": "water"}, "line 1 has no field 'output': .*its fields are: input"),
        ({"input": "water", "output": " "}, "line 1, field 'output' is empty"),
        ({"input": None, "output": "O"}, "line 1, field 'input' must be a text"),
    ],
)
def test_lines_that_are_something_else(line: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        find_task("smiles", TaskOptions(data=path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name the file with --data FILE, JSON lines with input, output"),
        ({"data": FILE, "shots": 2}, "--shots.* is asked as it is"),
        ({"data": FILE, "style": "x"}, "unknown style 'x' of smiles"),
    ],
)
def test_what_cannot_be_asked_says_so(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_task("smiles", TaskOptions(**options))
