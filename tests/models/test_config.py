"""What the fields of a network and of a spec may be, and which token ids a model has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from dllm.models import CheckpointError, ModelSpec, NetworkConfig
from dllm.models.config import (
    EXPERTS_FIELDS,
    NETWORK_FIELDS,
    SPEC_FIELDS,
    ExpertsConfig,
    printable,
)
from dllm.models.fields import Numbers
from dllm.models.yarn import YARN_FIELDS, YarnConfig

NETWORK = NetworkConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    rotary_dim=8,
)
SPEC = ModelSpec(50, 64, 48, (49,), 49, block_length=4)
EXPERTS = ExpertsConfig(num_experts=4, num_active=2, intermediate_size=8)
TABLES: list[tuple[Any, Any]] = [(NETWORK, NETWORK_FIELDS), (SPEC, SPEC_FIELDS)]
YARN = YarnConfig(factor=16.0, original_length=64)
TABLES += [(EXPERTS, EXPERTS_FIELDS), (YARN, YARN_FIELDS)]
IDS = ("mask_token_id", "eos_token_ids", "pad_token_id", "expand_token_id")
BY_TYPE = ("experts", "decoder", "yarn")  # which check their own fields

NOWHERE: list[Any] = [math.nan, math.inf, -math.inf, -1, 10**30, "8", [8], {}, 1 + 2j]


def every_field() -> list[Any]:
    cases = [(part, field.name) for part, _ in TABLES for field in fields(part)]
    return [pytest.param(*case, id=case[1]) for case in cases]


@pytest.mark.parametrize(("part", "table"), TABLES)
def test_every_field_has_what_it_may_be(part: Any, table: Any) -> None:
    assert [field.name for field in fields(part)] == list(table)
    unchecked = [name for name, allowed in table.items() if allowed is None]
    assert tuple(unchecked) in ((), IDS, BY_TYPE), "ids are checked against the vocabulary instead"


@pytest.mark.parametrize(("part", "name"), every_field())
def test_no_field_takes_what_it_cannot_be(part: Any, name: str) -> None:
    table: Any = next(table for one, table in TABLES if one is part)
    wrong = [value for value in NOWHERE if name != "eos_token_ids" or not isinstance(value, list)]
    if isinstance(table[name], Numbers):
        wrong += (
            ([] if 0 in table[name] else [0]) + [True, False] + ([2.5] if table[name].whole else [])
        )
        wrong += [] if table[name].optional else [None]
        wrong += [table[name].most + 1]
    for value in wrong:
        with pytest.raises(ValueError, match=name.removesuffix("s")):
            replace(part, **{name: value})


def test_optional_fields_may_be_left_out() -> None:
    assert replace(NETWORK, rotary_dim=None).rotary_dim is None
    assert replace(SPEC, block_length=None).block_length is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_token_ids": (-1,)}, "eos_token_id=-1 is outside the vocabulary of 50.*from 0 to 49"),
        ({"eos_token_ids": (49, 50)}, "eos_token_id=50 is outside"),
        ({"eos_token_ids": (48,)}, "eos_token_id=48 is the mask token"),
        ({"eos_token_ids": (True,)}, "eos_token_id=True is no token id"),
        ({"eos_token_ids": (1.0,)}, "eos_token_id=1.0 is no token id"),
        ({"eos_token_ids": 49}, r"eos_token_ids=49 must be a tuple of token ids, such as \(2,\)"),
        ({"eos_token_ids": "49"}, "eos_token_ids='49' must be a tuple"),
        ({"pad_token_id": -1}, "pad_token_id=-1 is outside"),
        ({"pad_token_id": 48}, "pad_token_id=48 is the mask token"),
        ({"pad_token_id": None}, "pad_token_id=None is no token id"),
        ({"mask_token_id": 50}, "mask_token_id=50 is outside"),
        ({"mask_token_id": -1}, "mask_token_id=-1 is outside"),
        ({"mask_token_id": "x"}, "mask_token_id='x' is no token id"),
        ({"attention": "block_causal", "block_length": None}, "needs a block_length"),
        ({"blocks_from": "prompt"}, "is of block_causal attention, not of full"),
    ],
)
def test_special_tokens_are_tokens(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **change)


def test_ids_of_numpy_and_lists_are_ids() -> None:
    eos: dict[str, Any] = {"eos_token_ids": [np.int64(3), 49]}
    spec = replace(SPEC, **eos)
    assert spec.eos_token_ids == (3, 49)
    assert hash(spec) == hash(replace(SPEC, eos_token_ids=(3, 49)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, Größe 大", "plain, Größe 大"),
        ("two\nlines", "two\nlines"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("half \ud800", r"half \ud800"),
        ("\u202eturned", r"\u202eturned"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: str, expected: str) -> None:
    errors: list[Callable[[str], object]] = [printable, CheckpointError]
    for safe in errors:
        assert str(safe(text)) == expected
