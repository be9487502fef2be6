"""diffusers' discrete schedulers: every recorded step that has a counterpart here."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from dllm.schedulers.entropy_bound import EntropyBound
from dllm.state.candidates import Sampling
from tests.support import GOLDEN
from tests.support.views import layout_of, view_of

ALL = json.loads((GOLDEN / "cases" / "diffusers_scheduler_steps.json").read_text())["cases"]
LOGITS = load_file(GOLDEN / "cases" / "diffusers_scheduler_logits.safetensors")
CASES = [case for case in ALL if case["scheduler"] == "EntropyBoundScheduler"]
VOCAB = 128  # and behind it a mask, which its process does not have


class Draws:
    """What `torch.multinomial` draws: an exponential for each token, and p / q is compared."""

    def __init__(self, seed: int) -> None:
        self.source = torch.Generator().manual_seed(seed)

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        drawn = torch.empty(columns.shape[1], VOCAB).exponential_(generator=self.source)
        return F.pad(drawn.double().neg().exp(), (0, 1), value=0.5)[None]

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        raise AssertionError("nothing is ordered at random")


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["i"]))
def test_entropy_bound(case: dict[str, Any]) -> None:
    """What is sampled and accepted; what is not becomes a random token, here it stays a mask."""
    args, noise = case["args"], Draws(case["args"]["generator_seed"])
    steps = args["num_inference_steps"]
    rest = (steps - args["timestep"]) / steps
    sampling = Sampling(
        mask_token_id=VOCAB,
        temperature=args["t_min"] + (args["t_max"] - args["t_min"]) * rest,
        confidence="tempered",
    )
    logits = F.pad(LOGITS[f"{case['i']}.logits"].float(), (0, 1), value=-torch.inf)[None]
    masked = torch.ones(logits.shape[:2], dtype=torch.bool)
    columns = torch.arange(masked.shape[1])[None]
    candidates = sampling.propose(logits, noise, columns, torch.zeros(1, dtype=torch.int64))
    assert candidates.token[0].tolist() == case["sampled_tokens"]
    assert candidates.confidence[0].tolist() == pytest.approx(case["sampled_probs"], rel=1e-5)
    layout = replace(layout_of(*masked.shape), mask_token_id=VOCAB)
    tokens = torch.full_like(columns, VOCAB)
    decision = EntropyBound(bound=args["entropy_bound"]).decide(
        candidates, view_of(masked, layout=layout, tokens=tokens)
    )
    assert decision.commit[0].int().tolist() == case["accepted_index"]
    renoised = torch.randint(0, VOCAB, columns.shape, generator=noise.source)
    after = torch.where(decision.commit, candidates.token, renoised)
    assert after[0].tolist() == case["prev_sample"]
