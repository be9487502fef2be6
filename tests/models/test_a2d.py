"""A2D checkpoints, whose attention the loader is told: full, or block-causal."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import dllm
from dllm import doctor
from dllm.eval.lm_eval.arguments import load_model, read_arguments
from dllm.eval.lm_eval.likelihood import Continuation, Scorer
from dllm.models import CheckpointError, load, save
from tests.support.commands import Inside, runner
from tests.support.models import Poisoned
from tests.support.oracles import VOCABULARY, hosted, oracle

A2D = ("A2DQwen3LMHeadModel", "A2DQwen2LMHeadModel", "A2DLlamaLMHeadModel")
BLOCK = 4
ON_BLOCKS: dict[str, Any] = {"attention": "block_causal", "block_length": BLOCK}
PROMPTS = [[3, 4, 5, 6, 7], [8] * 9]
SETTINGS: dict[str, Any] = {"max_new_tokens": 8, "scheduler": "threshold:0.3"}


def edit(folder: Path, **changes: Any) -> None:
    """Changes keys of config.json; `...` removes one."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def write_tokenizer(folder: Path) -> None:
    """Writes words w0, w1, ..., of which the one before the last three is the mask token."""
    words = {f"w{token}": token for token in range(VOCABULARY) if token != 47}
    tokenizer = Tokenizer(models.WordLevel({**words, "<|mask|>": 47}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def decoded_on_blocks(architecture: str, prompt: list[int], count: int) -> tuple[int, ...]:
    """Returns a prompt and as many tokens more, as the sampler of BD3LM fills them one a step.

    The prompt is padded on the left to whole blocks; positions count tokens, padding is not seen.
    """
    reference, pad = oracle(architecture), -len(prompt) % BLOCK
    total = -(-(pad + len(prompt) + count) // BLOCK) * BLOCK
    tokens = torch.full((1, total), 48)
    tokens[0, : pad + len(prompt)] = torch.tensor([0] * pad + prompt)
    blocks, real = torch.arange(total) // BLOCK, torch.arange(total) >= pad
    seen = (blocks[:, None] >= blocks) & real | torch.eye(total, dtype=torch.bool)
    mask = torch.zeros(1, 1, total, total).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = (torch.arange(total) - pad).clamp(min=0)[None]
    for block in range((pad + len(prompt)) // BLOCK, total // BLOCK):
        while bool((masked := (tokens[0] == 48) & (blocks == block)).any()):
            out = reference(input_ids=tokens, attention_mask=mask, position_ids=positions)
            logits = out.logits[0].softmax(-1)
            logits[:, 48] = 0
            confidence, best = logits.max(-1)
            column = int(confidence.masked_fill(~masked, -1).argmax())
            tokens[0, column] = best[column]
    return tuple(tokens[0, pad : pad + len(prompt) + count].tolist())


@pytest.mark.parametrize("architecture", A2D)
def test_blocks_are_those_of_a_left_padded_prompt_in_transformers(
    architecture: str, tmp_path: Path
) -> None:
    model = hosted(architecture, tmp_path, **ON_BLOCKS)
    assert (model.spec.attention, model.spec.block_length) == ("block_causal", BLOCK)
    prompts = [[3, 4, 5, 6, 7], [8] * 9, [9, 10, 11, 12], [13, 14]]
    expected = [decoded_on_blocks(architecture, prompt, 8) for prompt in prompts]
    options = {**SETTINGS, "scheduler": "threshold:1", "at_eos": "ignore"}
    for cache in ("none", "block_causal"):
        assert list(dllm.generate(model, prompts, **options, cache=cache).sequences) == expected
    parts = dllm.generate(model, prompts, **options, cache="sub_block:2,reuse=false")
    halves = dllm.generate(model, prompts, **options, cache="none", block_length=2)
    assert parts.sequences == halves.sequences != tuple(expected)
    stored = dllm.generate(model, prompts, **options, cache="block_causal", block_length=2)
    assert stored.sequences == halves.sequences


@pytest.mark.parametrize(
    "cache", ["block_causal:4", "block_causal:8", "sub_block:4,prefill_chunk=4"]
)
def test_a_prompt_is_read_in_parts_of_its_blocks(cache: str, tmp_path: Path) -> None:
    model: Any = hosted(A2D[0], tmp_path, "float64", **ON_BLOCKS)
    prompts = [[3 + 7 * place % 40 for place in range(length)] for length in (13, 4, 1, 7, 10, 20)]
    expected = dllm.generate(model, prompts, **SETTINGS)
    out, plain = dllm.generate(model, prompts, **SETTINGS, cache=cache), expected.sequences
    assert out.sequences == plain
    assert torch.equal(out.trace.commit_step, expected.trace.commit_step)
    torch.testing.assert_close(out.trace.confidence, expected.trace.confidence, equal_nan=True)
    assert out.metrics.forwards["commit"] == (2 if "8" in cache else 4)
    assert dllm.generate(Poisoned(model), prompts, **SETTINGS, cache=cache).sequences == plain
    for number, prompt in enumerate(prompts):
        assert dllm.generate(model, [prompt], **SETTINGS, cache=cache).sequences[0] == plain[number]
    waiting = dllm.generate(model, prompts, **SETTINGS, cache=cache, batch_size=2)
    assert waiting.sequences == plain


def test_a_memory_serves_prompts_that_are_cut_alike(tmp_path: Path) -> None:
    model, memory = hosted(A2D[0], tmp_path, "float64", **ON_BLOCKS), dllm.PromptMemory()
    options = {**SETTINGS, "cache": "block_causal", "at_eos": "ignore"}
    shared = [7, 30, 11, 9, 25, 41, 2, 13, 8]
    (first,) = dllm.generate(model, [shared], memory=memory, **options).sequences
    # Cut as the prompt before, cut otherwise, a chat that went on, other text within a block.
    later = [[*shared, 4, 4, 4, 4], [*shared, 5, 5], [*first, 3, 4, 5, 6], [*shared[:7], 3, 3]]
    plain = dllm.generate(model, later, **options)
    again = dllm.generate(model, later, memory=memory, **options)
    assert again.sequences == plain.sequences
    torch.testing.assert_close(again.trace.confidence, plain.trace.confidence, equal_nan=True)
    assert memory.reused == (9, 0, 13, 5)
    chunked = {**options, "cache": "block_causal:4"}
    assert dllm.generate(model, later, memory=memory, **chunked).sequences == plain.sequences
    assert memory.reused == (13, 11, 21, 9)


@pytest.mark.parametrize("length", [4, 5, 7])
def test_a_text_is_scored_in_the_blocks_that_it_is_decoded_in(length: int, tmp_path: Path) -> None:
    model = hosted(A2D[0], tmp_path, "float64", **ON_BLOCKS)
    prompt = [3 + 7 * place % 40 for place in range(length)]
    options = {**SETTINGS, "scheduler": "threshold:1", "at_eos": "ignore"}
    (text,) = dllm.generate(model, [prompt], **options).sequences
    ((_, score),) = Scorer(model).scores([Continuation(tuple(text), length)])
    assert score.is_greedy
    # By the chain rule its blocks add up, each behind those before it.
    ends = [(length + BLOCK, length), (len(text), length + BLOCK)]
    parts = [Continuation(tuple(text[:end]), start) for end, start in ends]
    found = [one.log_likelihood for _, one in Scorer(model).scores(parts)]
    assert score.log_likelihood == pytest.approx(sum(found), abs=1e-12)


def test_blocks_from_column_0_are_refused(tmp_path: Path) -> None:
    model = hosted(A2D[0], tmp_path, **ON_BLOCKS)
    with pytest.raises(ValueError, match="counted from the prompt's end; leave blocks_from out"):
        dllm.generate(model, PROMPTS, blocks_from="zero", **SETTINGS)
    full = load(tmp_path, attention="full")  # has no blocks of its own
    assert full.spec.blocks_from == "zero"
    dllm.generate(full, PROMPTS, blocks_from="zero", **SETTINGS)


@pytest.mark.parametrize("architecture", A2D)
def test_a_key_of_the_configuration_says_the_same_as_the_option(
    architecture: str, tmp_path: Path
) -> None:
    told = hosted(architecture, tmp_path, **ON_BLOCKS)
    assert load(tmp_path, attention=f"block_causal:{BLOCK}").spec == told.spec
    assert load(tmp_path).spec.attention == "full"
    edit(tmp_path, block_size=BLOCK)
    said = load(tmp_path)
    assert said.spec == told.spec == load(tmp_path, attention="block_causal").spec
    assert load(tmp_path, attention="full").spec.attention == "full"
    assert load(tmp_path, attention="block_causal:8").spec.block_length == 8
    outs = [dllm.generate(model, PROMPTS, **SETTINGS).sequences for model in (told, said)]
    assert outs[0] == outs[1]


def test_what_was_told_is_saved(tmp_path: Path) -> None:
    told = hosted(A2D[0], tmp_path, **ON_BLOCKS)
    save(told, tmp_path / "saved")
    assert load(tmp_path / "saved").spec == told.spec


def test_a_name_that_speaks_of_blocks_is_warned_of_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "Qwen3-0.6B-diffusion-bd3lm-v0.1"
    folder.mkdir()
    with caplog.at_level(logging.WARNING):
        assert hosted(A2D[0], folder).spec.attention == "full"
    said = caplog.text
    assert "'bd3lm' in its name is for models trained on blocks" in said
    assert "--attention block_causal:32" in said
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for options in (ON_BLOCKS, {"attention": "full"}):
            load(folder, **options)
        edit(folder, block_size=BLOCK)
        load(folder)
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "block_causal"}, "needs the block that the checkpoint was trained on"),
        ({"attention": "full", "block_length": 4}, "'full', without a block_length, or 'block_"),
        ({"attention": "causal"}, "attention='causal' with block_length=None"),
        ({"attention": "block_causal:0"}, "block_size=0; supported: a positive integer"),
        ({"attention": "block_causal:x"}, "give one block, as in 'block_causal:32'"),
        ({"attention": "block_causal:8", "block_length": 8}, "give one block"),
        ({"block_length": 8}, "is the block of attention='block_causal'"),
    ],
)
def test_attention_that_cannot_be(options: Any, message: str, tmp_path: Path) -> None:
    hosted(A2D[0], tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **options)


def test_other_families_leave_no_choice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="DreamModel are 'full' and leave no choice"):
        hosted("DreamModel", tmp_path, **ON_BLOCKS)


def test_the_mask_token_comes_from_the_tokenizer(tmp_path: Path) -> None:
    hosted(A2D[0], tmp_path)
    edit(tmp_path, mask_token_id=...)
    with pytest.raises(CheckpointError, match=r"no tokenizer to look up <\|mask\|> in"):
        load(tmp_path)
    write_tokenizer(tmp_path)
    assert load(tmp_path).spec.mask_token_id == 47


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    return runner(monkeypatch, capsys)


def test_the_command_line_and_the_harness_take_the_attention(
    tmp_path: Path, inside: Inside
) -> None:
    told = hosted(A2D[0], tmp_path, **ON_BLOCKS)
    write_tokenizer(tmp_path)
    command = ["generate", "w3 w4 w5 w6 w7", "-m", str(tmp_path), "-n", "8", "--json"]
    command += ["-s", "threshold:0.3", "-c", "block_causal", "--attention"]
    (row,) = inside(*command, f"block_causal:{BLOCK}").json["sequences"]
    again = load(tmp_path, **ON_BLOCKS)
    options = {**SETTINGS, "cache": "block_causal"}
    assert row == [*dllm.generate(again, PROMPTS[:1], **options).sequences[0]]
    wrong = inside(*command, "sideways")
    assert wrong.returncode != 0
    assert "attention='sideways'" in wrong.stderr
    given = read_arguments({"pretrained": str(tmp_path), "attention": f"block_causal:{BLOCK}"})
    assert load_model(given, None).spec == told.spec


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        (A2D[0], {"attention_bias": True}, "attention_bias=True"),
        (A2D[0], {"head_dim": ...}, "has no 'head_dim'"),
        (A2D[0], {"use_sliding_window": True}, "use_sliding_window=True"),
        (A2D[0], {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn'"),
        (A2D[1], {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (A2D[2], {"mlp_bias": True}, "mlp_bias=True"),
        (A2D[2], {"attention_bias": True}, "attention_bias=True"),
        (A2D[2], {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "'llama3'"),
    ],
)
def test_refused_configurations(
    architecture: str, changes: Any, message: str, tmp_path: Path
) -> None:
    hosted(architecture, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_the_doctor_says_the_attention_that_is_loaded(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine_machine", lambda where: iter(()))  # compiles
    hosted(A2D[0], tmp_path)
    assert "full attention" in inside("doctor", str(tmp_path), columns=400).stdout
    edit(tmp_path, block_size=BLOCK)
    assert "block-causal attention" in inside("doctor", str(tmp_path), columns=400).stdout
