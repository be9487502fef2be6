"""SDAR and Fast-dLLM v2: their logits, the passes that they spend, and where they are at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import dllm
from dllm.models.layers import RMSNorm
from dllm.state.candidates import Sampling
from dllm.state.noise import CounterNoise
from dllm.state.plan import StepPlan
from tests.golden.blockwise import (
    STALE,
    WRITES_OVER,
    parts,
    replay_blocks,
    replay_part,
    started,
    stores,
)
from tests.golden.methods.sdar import Likeliest
from tests.support import GOLDEN

FILES = ("sdar_generate", "fast_dllm_v2_generate")
CASES = {
    case["id"]: case
    for file in FILES
    for case in json.loads((GOLDEN / "cases" / f"{file}.json").read_text())["cases"]
}
FAULTS = {**WRITES_OVER, **STALE}


def model_of(case: dict[str, Any]) -> dllm.HostedModel:
    return dllm.load(GOLDEN / "models" / case["model"], dtype=case["dtype"])


def test_only_the_listed_recordings_have_faults() -> None:
    assert {name for name, case in CASES.items() if len(list(parts(case))) > 1} == set(FAULTS)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_where_a_replay_first_differs(name: str) -> None:
    case, number = CASES[name], FAULTS[name]
    what = replay_blocks(case, model_of(case))
    if name in STALE:  # ours is fed the whole block when it begins
        part = case["args"]["small_block_size"]
        assert what == f"pass {number} feeds 32 columns, not {part}"
    else:  # a column that is filled is not among our masks
        edits = {tuple(edit) for edit in case["trace"][number]["edits"]}
        assert what is not None
        assert edits
        ours = sorted({*map(tuple, case["trace"][number]["commits"])} - edits)
        assert what.startswith(f"pass {number} writes {ours}, not ")


@pytest.mark.few(2)
@pytest.mark.parametrize("name", FAULTS)
def test_what_stands_around_a_fault_is_replayed(name: str) -> None:
    case = CASES[name]
    model, stretches = model_of(case), list(parts(case))
    assert len(stretches) == 2
    for part in stretches:
        assert replay_part(case, part, model) is None
    # All but the passes over stale keys, or from the fault to the end of its block.
    num_left = sum(len(part.passes) for part in stretches)
    assert num_left >= 0.7 * sum(not stores(step) for step in case["trace"])


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [n for n in CASES if n not in FAULTS and "fv2" not in n])
def test_the_authors_pay_a_pass_for_the_prompt_and_for_each_block(name: str) -> None:
    """SDAR stores a finished block in a pass of its own, the last and a stopped one too."""
    case = CASES[name]
    running = started(case, case["prompt"], model_of(case))
    for _ in running:
        pass
    out, block = running.output, case["args"]["block_length"]
    read = len(case["prompt"]) // block * block
    num_blocks = int((out.trace.block_entry >= 0).sum())
    kept = [step["input_len"] for step in case["trace"] if stores(step)]
    assert kept == [read] * (read > 0) + [block] * num_blocks
    assert case["nfe"] == out.metrics.num_forwards + len(kept)
    assert sum(step["input_len"] for step in case["trace"]) == out.metrics.tokens_fed + block


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [n for n in CASES if n not in FAULTS and "fv2" in n])
def test_a_prompt_that_ends_in_a_block_costs_the_authors_a_pass_more(name: str) -> None:
    """Else Fast-dLLM v2's passes are ours: each block's first token is from one that stores."""
    case, block = CASES[name], CASES[name]["args"]["block_size"]
    running = started(case, case["prompt"], model_of(case))
    prompt, total = len(case["prompt"]), 0
    for event in running:
        total += 1
        if int(event.columns[0, 0]) >= len(case["final"]) // block * block:
            break  # the authors end with the token that opens this block
    assert case["nfe"] - total == (prompt > block and prompt % block > 0)


def test_top_k_comes_before_top_p() -> None:
    """Probabilities .4, .3, .2, .1: of the first three, .4 and .3 are .78 of what is left."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    left = Likeliest(3)(torch.zeros(1, 1), logits)
    assert left.isfinite().tolist() == [[True, True, True, False]]
    sampling = Sampling(3, 1.0, top_p=0.75, confidence="tempered")
    columns, step = torch.zeros(1, 1).long(), torch.zeros(1).long()
    for given, kept in ((left, 2), (logits, 3)):
        found = sampling.propose(given[None], CounterNoise(torch.zeros(1).long()), columns, step)
        assert int(found.logits.isfinite().sum()) == kept


def logits_of(model: dllm.HostedModel, tokens: Tensor, block: int) -> Tensor:
    """Returns the logits (L, V) of tokens (L,) of which each sees its block and those before."""
    columns = torch.arange(len(tokens))
    seen = columns // block <= columns[:, None] // block
    plan = StepPlan("step", columns[None], columns[None], len(tokens), seen[None])
    return model.forward(tokens[None], plan, None)[0]


def recorded_logits(name: str, dtype: str) -> list[tuple[Tensor, int, Tensor]]:
    """Returns the tokens, the block and the logits of each reference pass."""
    stored = load_file(Path(GOLDEN / "models" / name / "ref_logits.safetensors"))
    return [
        (
            stored[f"{number}.input_ids"],
            int(stored[f"{number}.meta"][1]),
            stored[f"{number}.logits_{dtype}"],
        )
        for number in range(3)
    ]


@torch.inference_mode()
@pytest.mark.parametrize("name", ["sdar_dense", "fast_dllm_v2"])
def test_float32_logits_equal_the_reference(name: str) -> None:
    model = dllm.load(GOLDEN / "models" / name, dtype="float32")
    for tokens, block, expected in recorded_logits(name, "f32"):
        given = logits_of(model, tokens, block)
        assert expected.std() > 1
        torch.testing.assert_close(given, expected, rtol=0, atol=5e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["sdar_dense", "fast_dllm_v2"])
def test_float64_logits_equal_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def normed_as_given(norm: RMSNorm, x: Tensor) -> Tensor:
        return norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps))

    model = dllm.load(GOLDEN / "models" / name, dtype="float64")
    if name == "sdar_dense":  # the recording's stand-in for flash-attn normalises in float64
        monkeypatch.setattr(RMSNorm, "forward", normed_as_given)
    for tokens, block, expected in recorded_logits(name, "f64"):
        given = logits_of(model, tokens, block)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-10)
