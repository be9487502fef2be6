"""Answers of random models to random schemas, judged by `jsonschema`; no model could do worse."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

import dllm
from dllm.constraints import JsonSchema
from tests.support.schemas import random_schema
from tests.support.vocabularies import byte_level

TEXTS = (b'{"', b'": ', b'", "', b'"}', b"name", b'": "', b"tr", b"ue", b"12", b"ab", b"  ", b"]}")


def random_model(seed: int) -> Any:
    """Returns a model whose logits are random functions of its tokens, with a tokenizer."""
    tokenizer = byte_level(TEXTS)
    source = torch.Generator().manual_seed(seed)
    known = torch.randn(len(tokenizer), 16, generator=source)
    near, out = (torch.randn(16, 16, generator=source) for _ in range(2))

    def logits_of(tokens: Tensor) -> Tensor:
        state = known[tokens]
        state = torch.tanh(state.roll(1, 1) @ near + state.roll(-2, 1) @ out)
        return state @ known.T

    return dllm.wrap(logits_of, vocab_size=len(tokenizer), tokenizer=tokenizer)


def check_answer(seed: int) -> None:
    """Fails where an answer is not JSON, or not what its schema asks for."""
    source = random.Random(seed)
    schema, model = random_schema(source, depth=2), random_model(seed % 7)
    how: dict[str, Any] = {
        "scheduler": ("threshold:0.2", "fixed_quota", "rcr", "factor", "remdm")[seed % 5],
        "temperature": seed % 2,
        "block_length": (16, 64)[seed % 3 == 0],
        "seed": seed,
        "at_eos": ("stop", "ignore")[seed % 2],
    }
    constraint = JsonSchema(schema)
    ends = model.spec.eos_token_ids, (model.spec.pad_token_id,)
    automaton = constraint.at(model.tokenizer, dllm.constraints.Ends(*ends))
    slots = int(automaton.shortest[automaton.start]) + source.randrange(24)
    output = dllm.generate(model, "go", max_new_tokens=slots, constraint=constraint, **how)
    assert output.texts is not None
    try:
        value = json.loads(output.texts[0])
    except json.JSONDecodeError as error:
        raise AssertionError(f"{seed}: {schema} {output.texts[0]!r}") from error
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_what_schemas_ask_for(seed: int) -> None:
    check_answer(seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_answers_are_what_schemas_ask_for() -> None:
    for seed in range(100, 300):
        check_answer(seed)
