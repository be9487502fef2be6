"""A LoRA for drafts alone: added where a pass drafts, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

import dllm
from dllm.models import CheckpointError, load
from dllm.models.loading.checkpoint import Checkpoint
from dllm.models.loading.draft_adapter import find_drafts
from dllm.models.loading.folder import Source
from dllm.models.low_rank import Adapted
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.models import Watched
from tests.support.oracles import hosted, kept_in, oracle
from tests.support.verified import base_of

NEMOTRON = "NemotronLabsDiffusionModel"
LAYERS, WIDTH, INPUTS, RANK = 3, 32, 64, 2
PROMPTS = [[3, 4, 5, 6, 7], [8, 9, 10] * 4, [11]]
OPTIONS: dict[str, Any] = {"cache": "block_causal", "max_new_tokens": 18, "at_eos": "ignore"}


def write(folder: Path, part: str = "self_attn.o_proj", rank: int = RANK, **config: Any) -> Path:
    """Writes an adapter of a module of every layer, large enough to change most predictions."""
    folder.mkdir()
    source, tensors = torch.Generator().manual_seed(7), dict[str, Tensor]()
    for layer in range(LAYERS):
        name = f"base_model.model.encoder.layers.{layer}.{part}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, INPUTS, generator=source)
        tensors[f"{name}.lora_B.weight"] = torch.randn(WIDTH, rank, generator=source)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4 * RANK, "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**said, **config}))
    return folder


def models(folder: Path) -> tuple[dllm.HostedModel, dllm.HostedModel, dllm.HostedModel]:
    """Returns the plain model, one that drafts with an adapter, and one that it is merged into."""
    plain = hosted(NEMOTRON, folder, "float64")
    inside = write(folder / "linear_spec_lora")
    return (
        plain,
        load(folder, dtype="float64", draft_adapter="linear_spec_lora"),
        load(folder, dtype="float64", adapter=inside),
    )


def test_a_pass_that_drafts_is_one_of_the_merged_model(tmp_path: Path) -> None:
    plain, drafting, merged = models(tmp_path)
    tokens, columns = torch.tensor([[3, 4, 5, 6]]), torch.arange(4)[None]
    for rows in (columns, columns[:, :1]):  # of all columns, and of one where the last layer ends
        plan = StepPlan("draft", columns, rows, num_keys=4)
        adapted = replace(plan, policy=drafting.drafting)
        given = drafting.forward(tokens, adapted, None)
        # A merged weight is rounded to float32, as the stored one is.
        expected = merged.forward(tokens, plan, None)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-3)
        own = plain.forward(tokens, plan, None)
        assert torch.equal(drafting.forward(tokens, plan, None), own)
        assert torch.equal(plain.forward(tokens, adapted, None), own)
        assert (given - own).abs().max() > 1


def test_only_drafts_are_made_with_it(tmp_path: Path) -> None:
    plain, drafting, merged = models(tmp_path)
    seen: list[tuple[bool, Any]] = []

    def check(tokens: Tensor, plan: StepPlan, store: KVStore, before: Any, logits: Tensor) -> None:
        seen.append((plan.kind == "draft", plan.policy))

    verified = {**OPTIONS, "verifier": "linear:8"}
    watched: Any = Watched(drafting, check)
    out = dllm.generate(watched, PROMPTS, **verified)
    assert {is_draft == isinstance(policy, Adapted) for is_draft, policy in seen} == {True}
    assert {is_draft for is_draft, _ in seen} == {True, False}
    assert out.sequences == dllm.generate(plain, PROMPTS, **base_of(verified)).sequences
    assert out.sequences != dllm.generate(merged, PROMPTS, **base_of(verified)).sequences
    for other in ({"scheduler": "fixed_quota"}, {"verifier": "ssd"}, base_of(verified)):
        both = [dllm.generate(one, PROMPTS, **{**OPTIONS, **other}) for one in (plain, drafting)]
        assert both[0].sequences == both[1].sequences


def test_a_draft_reads_keys_of_the_plain_model(tmp_path: Path) -> None:
    """The merged model over a store that the plain one has filled, both of transformers."""
    _, drafting, _ = models(tmp_path)
    drafts: list[Tensor] = []

    def check(tokens: Tensor, plan: StepPlan, store: KVStore, before: Any, logits: Tensor) -> None:
        if plan.kind == "draft":
            drafts.append(logits)

    watched: Any = Watched(drafting, check)
    out = dllm.generate(watched, PROMPTS[:1], **{**OPTIONS, "verifier": "linear:8"})
    plain, merged, store = oracle(NEMOTRON).double(), oracle(NEMOTRON).double(), DynamicCache()
    stored = load_file(tmp_path / "linear_spec_lora" / "adapter_model.safetensors")
    block = torch.tensor([[out.sequences[0][5], *[48] * 7]])
    with torch.no_grad():
        for layer, module in enumerate(merged.model.layers):
            name = f"base_model.model.encoder.layers.{layer}.self_attn.o_proj.lora"
            b, a = (stored[f"{name}_{side}.weight"].double() for side in "BA")
            module.self_attn.o_proj.weight += 4 * b @ a
        plain(input_ids=torch.tensor([PROMPTS[0]]), **kept_in(store))
        seen = torch.zeros(1, 1, 8, 13, dtype=torch.float64)
        expected = merged(input_ids=block, attention_mask=seen, **kept_in(store)).logits
    torch.testing.assert_close(drafts[0][:, :7], expected[:, 1:])


@pytest.mark.parametrize("speed", ["fused", None])
def test_ways_to_speed_leave_it_in_place(speed: str | None, tmp_path: Path) -> None:
    models(tmp_path)
    options: dict[str, Any] = {"dtype": "float64", "draft_adapter": "linear_spec_lora"}
    model = load(tmp_path, speed=speed, **options)
    tokens, columns = torch.tensor([[3, 4, 5, 6]]), torch.arange(4)[None]
    plan = StepPlan("draft", columns, columns, num_keys=4, policy=model.drafting)
    expected = load(tmp_path, **options).forward(tokens, plan, None)
    torch.testing.assert_close(model.forward(tokens, plan, None), expected)


def test_it_is_no_part_of_what_is_saved(tmp_path: Path) -> None:
    plain, drafting, _ = models(tmp_path)
    dllm.save(drafting, tmp_path / "saved")
    again = load(tmp_path / "saved", dtype="float64")
    assert again.drafting is None
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(again.network(tokens), plain.network(tokens))


def test_a_rank_of_its_own_and_its_root(tmp_path: Path) -> None:
    hosted(NEMOTRON, tmp_path, "float64")
    write(tmp_path / "one", rank=3, r=3, lora_alpha=6.0, use_rslora=True)
    attention: Any = load(tmp_path, draft_adapter="one").network.blocks[0].attention
    assert attention.draft.scale == pytest.approx(6 / 3**0.5)
    assert attention.draft.a.shape == (3, INPUTS)


@pytest.mark.parametrize(
    ("part", "config", "message"),
    [
        ("self_attn.q_proj", {}, "adapts 3 modules that are no weights of this model: encoder"),
        ("self_attn.o_proj", {"r": 3}, "the shapes of 3 modules do not fit"),
        ("self_attn.o_proj", {"use_dora": True}, "use_dora=True"),
        ("self_attn.o_proj", {"peft_type": "IA3"}, "peft_type='IA3'"),
    ],
)
def test_refused(part: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    hosted(NEMOTRON, tmp_path)
    write(tmp_path / "lora", part, **config)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, draft_adapter="lora")


def test_models_that_cannot_take_one(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"draft_adapter='nowhere': 'nowhere' is not an exist"
    ):
        hosted(NEMOTRON, tmp_path, draft_adapter="nowhere")
    with pytest.raises(CheckpointError, match=r"attention='full': leave it out, or merge it with"):
        load("tiny", draft_adapter=write(tmp_path / "lora"))
    with pytest.raises(ValueError, match="draft_adapter='lora' is of whole projections, of which"):
        find_drafts("lora", Source(), Checkpoint(str(tmp_path), Source()), tensor_parallel=2)
