"""E2D2's encoder cache: exact, and what is committed is encoded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dllm
from dllm.models import CheckpointError
from dllm.state.plan import StepPlan
from tests.support import GOLDEN
from tests.support.exactness import RAGGED, assert_exact, decode
from tests.support.laws import served, transfers_of
from tests.support.marks import crossed
from tests.support.models import MASK, Misleading, Poisoned, family_model

MODELS = ("e2d2", "e2d2_shared")
GOLDEN_MODELS = ("e2d2_tied", "e2d2_untied")
SLOTS: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8}


@pytest.mark.few(8)
@pytest.mark.parametrize("scheduler", served("e2d2", "encoder"))
def test_every_logit_is_that_of_no_cache(scheduler: Any) -> None:
    """Of the methods that look at a whole row, tokens: with the cache they see the window."""
    model, options = family_model("e2d2"), {**SLOTS, "scheduler": scheduler}
    if dllm.schedulers.registry.create(scheduler).needs(32, 8).whole_row:
        together = decode(model, RAGGED, cache="encoder", **options)[0]
        assert MASK not in {token for row in together.sequences for token in row}
        return
    assert_exact(model, RAGGED, "encoder", **options)


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("name", "at_eos", "start"),
    crossed(MODELS, ("ignore", "stop", "skip", "block", "truncate"), ("prompt", "zero")),
)
def test_exact_with_every_rule_for_end_tokens(name: str, at_eos: str, start: str) -> None:
    ends = list(range(0, 126, 12))
    options = {**SLOTS, "eos_token_id": ends, "blocks_from": start, "scheduler": "threshold:0.2"}
    assert_exact(family_model(name), RAGGED, "encoder", at_eos=at_eos, **options)


@pytest.mark.parametrize("name", MODELS)
def test_exact_around_given_text(name: str) -> None:
    """Blocks that are given whole are not entered: they are encoded with the one before."""
    model = family_model(name)
    fixed = {0: 5, **{at: 30 + at for at in range(7, 25)}, 30: 7}
    options: dict[str, Any] = {**SLOTS, "max_new_tokens": 40, "fixed": fixed}
    for scheduler in ("threshold:0.3", "token_editing:0.3,editing_threshold=0.2"):
        assert_exact(model, RAGGED, "encoder", scheduler=scheduler, **options)
    rows = [[1, MASK, 3], [4] * 9 + [MASK] * 5 + [7] * 30 + [MASK] * 3, [8] * 8 + [MASK] * 9]
    assert_exact(model, rows, "encoder", infill=True, block_length=4)


@pytest.mark.parametrize("name", MODELS)
def test_exact_from_an_empty_prompt_and_with_guidance(name: str) -> None:
    assert_exact(family_model(name), [[], [4] * 9], "encoder", **SLOTS)
    assert_exact(family_model(name), RAGGED, "encoder", guidance_scale=0.7, **SLOTS)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "scheduler"), crossed(MODELS, ("threshold:0.3", "fixed_quota:order=random", "rcr"))
)
def test_a_row_does_not_depend_on_its_batch(name: str, scheduler: str) -> None:
    model, options = family_model(name), {**SLOTS, "cache": "encoder", "scheduler": scheduler}
    together = decode(model, RAGGED, **options)[0]
    for row, prompt in enumerate(RAGGED):
        alone = decode(model, [prompt], **{**options, "seed": row})[0]
        assert alone.sequences[0] == together.sequences[row]
        assert alone.metrics.rows[0] == together.metrics.rows[row]
    waiting = decode(model, RAGGED, **options, batch_size=2)[0]
    assert waiting.sequences == together.sequences


@pytest.mark.parametrize("cached", ["encoder", "encoder:again=true"])
def test_stale_slots_and_logits_that_are_not_there_are_never_read(cached: str) -> None:
    model, options = family_model("e2d2"), {**SLOTS, "cache": cached, "seed": 0}
    prompts = [*RAGGED, list(range(40)), []]
    clean = dllm.generate(model, prompts, **options).sequences
    spoiled: list[Any] = [Poisoned(model), Misleading(model, 100)]
    for other in spoiled:
        assert dllm.generate(other, prompts, **options).sequences == clean


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "verifier"), crossed(MODELS, ("ssd", "freedave", "ssd:draft_length=6"))
)
def test_a_verifier_changes_no_token(name: str, verifier: str) -> None:
    options = {**SLOTS, "cache": "encoder", "scheduler": "fixed_quota"}
    plain = decode(family_model(name), RAGGED, **options)[0]
    verified = decode(family_model(name), RAGGED, verifier=verifier, **options)[0]
    assert verified.sequences == plain.sequences
    assert verified.metrics.num_forwards < plain.metrics.num_forwards


@pytest.mark.parametrize("name", MODELS)
def test_what_is_committed_is_encoded_once(name: str) -> None:
    """The prompt with the first pass, each block with the next one's, the last not at all."""
    _, _, recorded = decode(family_model(name), [[5] * 11], cache="encoder", **SLOTS)
    fed = [plan.stored[0].tolist() for plan in recorded.plans if plan.stored is not None]
    assert [column for columns in fed for column in columns] == list(range(11 + 24))
    assert [len(columns) for columns in fed if columns] == [11, 8, 8, 8]
    decoded = [plan.positions.shape[1] - plan.stored.shape[1] for plan in recorded.plans]  # type: ignore[union-attr]
    assert set(decoded) == {8}


def test_one_host_transfer_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**SLOTS, "cache": "encoder", "seed": 0, "at_eos": "ignore"}
    events = iter(dllm.stream(family_model("e2d2"), RAGGED, **options))
    next(events)
    waits = transfers_of(events, monkeypatch)
    assert len(waits) > 4
    assert set(waits) == {1}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "cached"), crossed(MODELS, ("none", "encoder", "encoder:again=true"))
)
def test_flops_are_those_that_torch_counts(name: str, cached: str) -> None:
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        out = decode(family_model(name), RAGGED, cache=cached, **SLOTS)[0]
    assert out.metrics.flops == counter.get_total_flops() > 0


def test_other_caches_and_ways_are_refused() -> None:
    model = family_model("e2d2")
    for cached in dllm.cache.registry.names():
        if cached in ("none", "encoder"):
            continue
        with pytest.raises(ValueError, match="encoder"):
            dllm.stream(model, [[1]], cache=cached, scheduler="fixed_quota:order=planned")
    with pytest.raises(ValueError, match="take 'batch'"):
        dllm.stream(model, [[1]], scheduler="fixed_quota", verifier="ssd:execution=tree")
    with pytest.raises(ValueError, match="use cache='block_causal'"):
        dllm.stream(family_model("sdar"), [[1]], cache="encoder")
    ways: Any = ("compiled", "captured")
    for way in ways:
        with pytest.raises(ValueError, match="an encoder and a decoder"):
            dllm.speed_up(model, way)


@pytest.mark.parametrize("way", ["fused", "packed"])
def test_ways_to_speed_up_leave_the_logits(way: Any) -> None:
    for name in GOLDEN_MODELS:
        plain, quick = (dllm.load(GOLDEN / "models" / name, dtype="float32") for _ in range(2))
        quick = dllm.speed_up(quick, way)
        given = [forward(model, name, 1, "f32")[0] for model in (plain, quick)]
        torch.testing.assert_close(*given, rtol=0, atol=1e-4)


def forward(model: dllm.HostedModel, name: str, number: int, dtype: str) -> tuple[Tensor, Tensor]:
    """Returns logits of the one-pass form, and the recorded ones, of tokens that are no padding."""
    stored = load_file(GOLDEN / "models" / name / "ref_logits.safetensors")
    case = {key.split(".")[1]: value for key, value in stored.items() if key[0] == str(number)}
    clean, noisy, length = case["x0"], case["xt"], len(case["x0"])
    encoder = torch.cat([case["encoder_mask"], torch.zeros_like(case["encoder_mask"])], 1)
    columns, mask = torch.arange(length), torch.cat([encoder, case["decoder_mask"]])
    both = torch.cat([columns, columns])[None]
    plan = StepPlan("step", both, columns[None] + length, length, mask[None], columns[None])
    with torch.inference_mode():
        logits = model.forward(torch.cat([clean, noisy])[None], plan, None)[0]
    kept = case["attention_mask"].bool()
    return logits[kept], case[f"logits_{dtype}"][kept]


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_logits_equal_the_reference(name: str) -> None:
    model = dllm.load(GOLDEN / "models" / name, dtype="float64")
    for number in range(3):
        given, expected = forward(model, name, number, "f64")
        assert expected.std() > 1
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)
    given, expected = forward(dllm.load(GOLDEN / "models" / name, dtype="float32"), name, 1, "f32")
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-4)


def checkpoint(folder: Path, name: str = "e2d2_tied", **changed: Any) -> Path:
    """Copies a golden checkpoint, with other keys in config.json; None takes one out."""
    source = GOLDEN / "models" / name
    config = {**json.loads((source / "config.json").read_text()), **changed}
    kept = {key: value for key, value in config.items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(kept))
    save_file(load_file(source / "model.safetensors"), folder / "model.safetensors")
    return folder


def test_shared_tensors_may_be_stored_under_either_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a")
    expected = forward(dllm.load(folder), "e2d2_tied", 0, "f64")[0]
    shared = json.loads((folder / "config.json").read_text())["shared_tensors"]
    weights = load_file(folder / "model.safetensors")
    twice = {**weights, **{name: weights[first].clone() for name, first in shared.items()}}
    save_file(twice, folder / "model.safetensors")
    assert torch.equal(forward(dllm.load(folder), "e2d2_tied", 0, "f64")[0], expected)
    others = {name: weight for name, weight in twice.items() if "decoder" in name}
    save_file(others, folder / "model.safetensors")
    assert torch.equal(forward(dllm.load(folder), "e2d2_tied", 0, "f64")[0], expected)
    twice["backbone.decoder.model.norm.weight"][3] += 1
    save_file(twice, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ties backbone.* both are stored and differ"):
        dllm.load(folder)


def test_the_shape_comes_from_the_base_that_config_names(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "own", qwen3_config=None)
    config = json.loads((folder / "config.json").read_text())
    base = json.loads((GOLDEN / "models" / "e2d2_tied" / "config.json").read_text())["qwen3_config"]
    with pytest.raises(CheckpointError, match=r"takes its shape from .* as 'qwen3_config'"):
        dllm.load(folder)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(base))
    config["backbone_config"]["pretrained_model_name_or_path"] = str(tmp_path / "base")
    (folder / "config.json").write_text(json.dumps(config))
    model = dllm.load(folder)
    assert model.network.config.num_layers == 3
    dllm.save(model, tmp_path / "saved")  # with the shape: the base is not needed any more
    (tmp_path / "base" / "config.json").unlink()
    assert dllm.load(tmp_path / "saved").network.config == model.network.config


def test_what_differs_from_the_base_wins(tmp_path: Path) -> None:
    backbone = json.loads((GOLDEN / "models" / "e2d2_untied" / "config.json").read_text())
    wider = {**backbone["backbone_config"], "intermediate_size": 32}
    folder = checkpoint(tmp_path / "own", "e2d2_untied", backbone_config=wider)
    with pytest.raises(CheckpointError, match="other shapes than"):
        dllm.load(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("_target_", "backbone.Other", "supported: LLMasEncoderDecoderShareKV or"),
        ("_target_", 3, "supported: LLMasEncoderDecoderShareKV or"),
        ("_target_", None, "has no '_target_'"),
        ("tie_encoder_decoder_weights", False, "supported: true"),
        ("keep_top_decoder_layers", False, "its last layers decode"),
        ("use_encoder_causal_mask", True, "use_encoder_causal_mask"),
        ("num_decoder_layers", 9, "cannot be the last of"),
        ("num_encoder_layers", 0, "positive integer"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    config = json.loads((GOLDEN / "models" / "e2d2_tied" / "config.json").read_text())
    other = {**config["backbone_config"], key: value}
    with pytest.raises(CheckpointError, match=message):
        dllm.load(checkpoint(tmp_path / "own", backbone_config=other))


def test_a_backbone_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="backbone_config"):
        dllm.load(checkpoint(tmp_path / "own", backbone_config=[1]))
