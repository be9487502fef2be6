"""Nemotron-Labs-Diffusion: stretched rotary positions, blocks behind a causal context."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache, Ministral3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import dllm
from dllm.cache import registry
from dllm.models import CheckpointError, NetworkConfig, load
from dllm.models.families.family import Fields
from dllm.models.families.nemotron import network_of
from dllm.models.transformer import Transformer
from tests.support.laws import transfers_of
from tests.support.models import Poisoned
from tests.support.oracles import STRETCHED, hosted, kept_in, oracle

NEMOTRON = "NemotronLabsDiffusionModel"
MASK, BLOCK = 48, 8
# As in the published files: of the instructed models, and of the smallest base model.
PUBLISHED: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "original_max_position_embeddings": 16384,
    "factor": 16.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
STRETCHES: list[dict[str, Any]] = [
    {},
    {"factor": 0.25},
    {"mscale": 0.7},
    {"mscale": None, "mscale_all_dim": None},
    {"attention_factor": 1.25},
    {"truncate": False},
    {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
    {"original_max_position_embeddings": 4},
    {"original_max_position_embeddings": 2**30},
]


def config_of(rope: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "rope_parameters": rope,
        **keys,
    }


def read(rope: dict[str, Any], **keys: Any) -> NetworkConfig:
    return network_of(Fields(config_of(rope, **keys), NEMOTRON))


@pytest.mark.parametrize("changes", STRETCHES, ids=str)
def test_frequencies_are_those_of_transformers(changes: dict[str, Any]) -> None:
    rope = {key: value for key, value in {**PUBLISHED, **changes}.items() if value is not None}
    config = Ministral3Config(**config_of(dict(rope)))
    frequencies, magnitude = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    columns = torch.tensor([[0, 1, 7, 900, 4000]])
    given = Transformer(read(rope)).rotation(columns)
    angles = columns[..., None].float() * frequencies
    assert torch.equal(given.cos[0, :, 0, :64], angles.cos()[0] * magnitude)
    assert torch.equal(given.sin[0, :, 0, 64:], angles.sin()[0] * magnitude)
    if "original_max_position_embeddings" not in changes:  # so short or long that nothing is
        plain = Transformer(replace(read(rope), yarn=None)).rotation(columns)
        assert not torch.equal(given.cos, plain.cos)


def test_a_factor_below_one_is_not_made_of_the_lengths() -> None:
    for factor in (0.25, 16.0):
        yarn = read({**PUBLISHED, "factor": factor}, max_position_embeddings=262144).yarn
        assert yarn is not None
        assert (yarn.factor, yarn.original_length, yarn.magnitude) == (factor, 16384, 1.0)


def test_queries_are_scaled_behind_the_original_length() -> None:
    columns = torch.tensor([[0, 16383, 16384, 49151, 49152]])
    scale = Transformer(read(PUBLISHED)).rotation(columns).query
    assert scale is not None
    expected = [1.0, 1.0, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3), 1 + 0.1 * math.log(4)]
    assert scale.flatten().tolist() == pytest.approx(expected, abs=1e-7)
    plain = {key: value for key, value in PUBLISHED.items() if key != "llama_4_scaling_beta"}
    assert Transformer(read(plain)).rotation(columns).query is None


def decoded(prompt: list[int], num_blocks: int, seeded: bool = False) -> list[int]:
    """Returns greedy blocks, the surest mask a pass, over a store of causal passes alone.

    `seeded` takes the first token of a block from the causal pass before it.
    """
    reference, store = oracle(NEMOTRON), DynamicCache()
    causal = reference(input_ids=torch.tensor([prompt]), **kept_in(store))
    tokens = list(prompt)
    for _ in range(num_blocks):
        block = torch.full((1, BLOCK), MASK)
        if seeded:
            following = causal.logits[0, -1].clone()
            following[MASK] = -torch.inf
            block[0, 0] = following.argmax()
        while bool((block == MASK).any()):
            open_to_all = torch.zeros(1, 1, BLOCK, len(tokens) + BLOCK)
            logits: Tensor = reference(
                input_ids=block, attention_mask=open_to_all, **kept_in(store)
            ).logits[0]
            store.crop(-BLOCK)
            probability = logits.softmax(-1)
            probability[:, MASK] = 0  # never proposed, but part of the sum, as everywhere here
            confidence, best = probability.max(-1)
            column = int(confidence.masked_fill(block[0] != MASK, -1).argmax())
            block[0, column] = best[column]
        causal = reference(input_ids=block, **kept_in(store))  # and kept
        tokens += block[0].tolist()
    return tokens


@pytest.mark.parametrize("cache", ["none", "block_causal", "prefix", "dual"])
def test_tokens_are_those_of_a_store_of_causal_keys(cache: str, tmp_path: Path) -> None:
    model = hosted(NEMOTRON, tmp_path)
    prompts = [[3, 4, 5, 6, 7], [8, 9, 10] * 4]
    out = dllm.generate(
        model,
        prompts,
        cache=cache,
        scheduler="fixed_quota",
        max_new_tokens=2 * BLOCK,
        at_eos="ignore",
    )
    assert [list(row) for row in out.sequences] == [decoded(prompt, 2) for prompt in prompts]


@pytest.mark.parametrize(
    "cache", ["block_causal", "block_causal:prefill_chunk=3", f"sub_block:{BLOCK}"]
)
def test_a_block_may_begin_with_what_the_causal_pass_before_it_predicts(
    cache: str, tmp_path: Path
) -> None:
    model = hosted(NEMOTRON, tmp_path)
    prompts = [[3, 4, 5, 6, 7], [8, 9, 10] * 4, [11]]
    options: dict[str, Any] = {
        "cache": registry.create(cache).summary() | {"first_token": "force"},
        "scheduler": "fixed_quota",
        "max_new_tokens": 3 * BLOCK,
        "at_eos": "ignore",
    }
    out = dllm.generate(model, prompts, **options)
    expected = [decoded(prompt, 3, seeded=True) for prompt in prompts]
    assert [list(row) for row in out.sequences] == expected
    assert expected != [decoded(prompt, 3) for prompt in prompts]
    # A block costs its masks but one, and the causal pass that predicts that one.
    assert [row.forwards for row in out.metrics.rows] == [3 * BLOCK] * 3
    for prompt, sequence in zip(prompts, out.sequences, strict=True):
        assert dllm.generate(model, [prompt], **options).sequences[0] == sequence
    memory = dllm.PromptMemory()  # what was stored is predicted from, too
    dllm.generate(model, [prompts[1][:9]], memory=memory, **options)
    again = dllm.generate(model, [prompts[1][:9]], memory=memory, **options)
    assert list(again.sequences[0]) == decoded(prompts[1][:9], 3, seeded=True)


def test_laws_hold_where_blocks_begin_with_what_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = hosted(NEMOTRON, tmp_path, "float64")
    prompts, memory = [[3, 4, 5, 6, 7], [8, 9, 10] * 4, [11]], dllm.PromptMemory()
    options: dict[str, Any] = {"cache": "block_causal:first_token=force", "at_eos": "ignore"}
    options |= {"scheduler": "fixed_quota", "max_new_tokens": 2 * BLOCK}
    plain = dllm.generate(model, prompts, **options).sequences
    assert dllm.generate(Poisoned(model), prompts, **options).sequences == plain
    for verifier in ("ssd", "ssd:execution=tree", "freedave"):
        assert dllm.generate(model, prompts, verifier=verifier, **options).sequences == plain
    # The store of the run before has the whole prompt: its last column is fed to predict.
    for _ in range(2):
        assert dllm.generate(model, prompts, memory=memory, **options).sequences == plain
    assert memory.reused == (5, 12, 1)
    events = iter(dllm.stream(model, prompts, **options))
    next(events)  # tables are built once
    assert set(transfers_of(events, monkeypatch)) == {1}


def test_slots_fill_whole_blocks_behind_the_prompt(tmp_path: Path) -> None:
    """What was not asked for is decoded with its block, and cut."""
    model = hosted(NEMOTRON, tmp_path)
    options: dict[str, Any] = {"scheduler": "fixed_quota", "at_eos": "ignore"}
    whole = dllm.generate(model, [[3, 4, 5]], max_new_tokens=BLOCK, **options).sequences[0]
    part = dllm.generate(model, [[3, 4, 5]], max_new_tokens=3, **options).sequences[0]
    assert part == whole[:6]


def test_the_rest_of_a_chat_is_recalled_from_causal_keys(tmp_path: Path) -> None:
    model, memory = hosted(NEMOTRON, tmp_path, "float64"), dllm.PromptMemory()
    options: dict[str, Any] = {"scheduler": "threshold:0.5", "cache": "block_causal"}
    options |= {"max_new_tokens": 2 * BLOCK, "at_eos": "ignore"}
    first = dllm.generate(model, [[3, 4, 5]], memory=memory, **options).sequences[0]
    prompt = [*first, 7, 8]
    again = dllm.generate(model, [prompt], memory=memory, **options).sequences
    assert memory.reused[0] >= 3 + BLOCK
    assert again == dllm.generate(model, [prompt], **options).sequences


def edit(folder: Path, **changes: Any) -> None:
    """Changes keys of config.json; `...` removes one."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def test_scales_of_an_8_bit_store_are_left_out_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = hosted(NEMOTRON, tmp_path).network(torch.tensor([[3, 4, 5]]))
    file = tmp_path / "model.safetensors"
    scale = {"encoder.layers.0.self_attn.k_scale": torch.ones(1)}
    save_file({**load_file(file), **scale}, file)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load(tmp_path).network(torch.tensor([[3, 4, 5]])), expected)
    assert "1 tensors of parts that are not hosted are left out: encoder.layers.0" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dlm_type": "dream"}, "dlm_type='dream'; supported: 'llada'"),
        ({"dlm_paradigm": "autoregressive"}, "dlm_paradigm='autoregressive'"),
        ({"causal_context": False}, "causal_context=False"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"sliding_window": 64}, "sliding_window=64; supported: null"),
        ({"head_dim": ...}, "has no 'head_dim'"),
        ({"block_size": ...}, "has no 'block_size'"),
        ({"mask_token_id": ...}, "has no mask_token_id"),
        ({"rope_parameters": {**STRETCHED, "rope_type": "longrope"}}, "rope_type='longrope'"),
        ({"rope_parameters": {**STRETCHED, "factor": 0}}, "factor=0; supported: a positive"),
        ({"rope_parameters": {**STRETCHED, "factor": None}}, "has no 'factor'"),
        ({"rope_parameters": {**STRETCHED, "short_factor": [1]}}, "short_factor=.*left out"),
        ({"rope_parameters": {**STRETCHED, "beta_slow": 64}}, "beta_slow=64.0 is over beta_fast"),
        ({"rope_parameters": {**STRETCHED, "rope_theta": None}}, "has no 'rope_theta'"),
        ({"rope_scaling": {**STRETCHED, "factor": 2.0}}, "rope_scaling=.*the same as rope_param"),
        ({"rope_scaling": 3}, "rope_scaling=3; supported: an object or null"),
        ({"rope_theta": 5e5}, "rope_theta=500000.0; supported: 10000.0, as rope_parameters has"),
    ],
)
def test_refused_configurations(changes: Any, message: str, tmp_path: Path) -> None:
    hosted(NEMOTRON, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_both_places_of_the_stretch_may_say_it(tmp_path: Path) -> None:
    expected = hosted(NEMOTRON, tmp_path).network.config
    edit(tmp_path, rope_scaling=STRETCHED)
    assert load(tmp_path).network.config == expected
    edit(tmp_path, rope_parameters=...)
    assert load(tmp_path).network.config == expected


def test_the_sister_may_leave_its_heads_as_they_are(tmp_path: Path) -> None:
    model = hosted("DiffEncoderModel", tmp_path)
    assert model.network.config.qk_norm
    file = tmp_path / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if "q_norm" not in k and "k_norm" not in k}
    save_file(kept, file)
    edit(tmp_path, disable_qk_norm=True)
    assert not load(tmp_path).network.config.qk_norm
