"""What is decoded beside each peer, and whether the tokens are the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import dllm
from benchmarks.shapes import SHAPES, random_model
from dllm.models.families.llada import SUPPORTED


@dataclass(frozen=True)
class Case:
    """One decoding of both; one token a step without a threshold."""

    cache: str
    threshold: float | None = None
    batch: int = 1
    new_tokens: int = 128
    goal: float | None = None  # the least ratio of the peer's time to ours that is aimed at

    @property
    def name(self) -> str:
        """How it is named in tables and by `--only`."""
        pace = "one token a step" if self.threshold is None else f"threshold {self.threshold}"
        rows = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{pace}, {self.cache}{rows}"

    @property
    def scheduler(self) -> str:
        """The scheduler of this project that does the same."""
        return "fixed_quota" if self.threshold is None else f"threshold:{self.threshold}"


CASES = {
    "fast_dllm": (
        Case("none", goal=1.7),
        Case("prefix", goal=1.35),
        Case("dual", goal=1.35),
        Case("none", threshold=0.9, goal=1.8),
        Case("prefix", threshold=0.9, goal=1.5),
        Case("dual", threshold=0.9, goal=1.45),
    ),
    # Every step feeds every row whole, so few steps show as much as many.
    "llada": (
        Case("none"),
        Case("none", batch=4, new_tokens=64),
        Case("none", batch=16, new_tokens=32, goal=1.35),
    ),
    "d2cache": (Case("dual", batch=4),),
}


@dataclass(frozen=True)
class Lengths:
    """What all cases of a run have in common."""

    prompt: int
    block: int
    most: int | None = None  # slots, fewer than a case has, to see whether everything runs

    def prompts(self, case: Case, vocab_size: int) -> list[list[int]]:
        """Returns random prompts of a case, without the last two tokens: an end and the mask."""
        generator = torch.Generator().manual_seed(0)
        size = (case.batch, self.prompt)
        drawn = torch.randint(0, vocab_size - 2, size, generator=generator)
        return [[int(token) for token in row] for row in drawn]

    def of(self, case: Case) -> Case:
        """Returns the case with no more slots than asked for."""
        most = case.new_tokens if self.most is None else self.most
        return replace(case, new_tokens=min(case.new_tokens, most))


def write_checkpoint(shape: str, folder: Path) -> None:
    """Writes a random network of a shape in LLaDA's own layout, in float32."""
    model = random_model(shape, torch.float32)
    mask = model.spec.mask_token_id
    # The loops of peers do not forbid the mask itself; a logit of 0 is never the largest.
    model.network.head.weight[mask] = 0
    # Sure enough that a threshold of 0.9 commits two or three tokens a step, as with trained ones.
    model.network.head.weight.mul_(3)
    dllm.save(replace(model, config=_config(shape, model)), folder)


def _config(shape: str, model: dllm.HostedModel) -> dict[str, Any]:
    network, spec = SHAPES[shape].network, model.spec
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": network.hidden_size,
        "n_layers": network.num_layers,
        "n_heads": network.num_heads,
        "n_kv_heads": network.num_kv_heads,
        "mlp_hidden_size": network.intermediate_size,
        **SUPPORTED,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
        "flash_attention": False,
        "init_device": "cpu",
        "use_cache": False,
        "rms_norm_eps": network.rms_norm_eps,
        "rope_theta": network.rope_theta,
        "rope_full_precision": True,
        "weight_tying": False,
        "vocab_size": network.vocab_size,
        "embedding_size": network.vocab_size,
        "max_sequence_length": 4096,
        "eos_token_id": spec.eos_token_ids[0],
        "pad_token_id": spec.pad_token_id,
        "mask_token_id": spec.mask_token_id,
    }


def first_difference(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> str:
    """Returns where tokens differ, "" where they are equal."""
    if len(ours) != len(theirs):
        return f"{len(ours)} rows of ours, {len(theirs)} of the peer"
    for row, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        if len(left) != len(right):
            return f"row {row}: {len(left)} columns of ours, {len(right)} of the peer"
        for column, (one, other) in enumerate(zip(left, right, strict=True)):
            if one != other:
                return f"row {row}, column {column}: {one} of ours, {other} of the peer"
    return ""


def message(case: Case, lengths: Lengths, mask: int, prompts: list[list[int]]) -> str:
    """Returns the line that asks a peer for a decoding."""
    asked = {"cache": case.cache, "threshold": case.threshold, "new_tokens": case.new_tokens}
    return json.dumps({**asked, "block": lengths.block, "mask": mask, "prompts": prompts})
