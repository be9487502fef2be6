"""Settings that replay JetAstra/SDAR: its evaluation loop and its generate.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Case = dict[str, Any]


class SDARNoise:
    """The draws of `torch.multinomial`: an exponential for each token of each column of the block.

    It takes the largest p / q, which is the largest log p - log q; here q is -log of a uniform.
    """

    def __init__(self, seed: int, block: int) -> None:
        self.source = torch.Generator().manual_seed(seed)
        self.block = block

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        drawn = torch.empty(self.block, vocab_size).exponential_(generator=self.source)
        return drawn.double().neg().exp()[columns % self.block]

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        raise AssertionError("no order of SDAR is random")


@dataclass(frozen=True)
class Likeliest:
    """Keeps so many tokens before anything else is done: SDAR cuts to top-k, then to top-p.

    Here, as in Dream, the nucleus is that of all tokens. Temperature does not change the order.
    """

    count: int

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        least = scores.topk(self.count, dim=-1).values[:, -1:]
        return scores.masked_fill(scores < least, -torch.inf)


def common(case: Case) -> dict[str, Any]:
    block, prompt = case["args"]["block_length"], len(case["prompt"])
    return {
        "max_new_tokens": len(case["final"]) - prompt,
        "block_length": block,
        "cache": "block_causal",
        "confidence": "raw",
        "at_eos": "ignore",
    }


def total_steps(case: Case) -> int:
    """Returns the steps of all blocks, the one that the prompt ends in included."""
    block = case["args"]["block_length"]
    num_blocks = len(case["final"]) // block - len(case["prompt"]) // block
    return int(case["args"]["denoising_steps"] * num_blocks)


def evaluation(case: Case) -> dict[str, Any]:
    args = case["args"]
    scheduler = {"threshold": args["threshold"], "quota": "least", "steps": total_steps(case)}
    return {
        **common(case),
        "scheduler": {"name": "quota_threshold", **scheduler},
        "eos_token_id": args["stopping_criteria_idx"],
        "at_eos": "block",
    }


def greedy(case: Case) -> dict[str, Any]:
    args, strategy = case["args"], case["args"]["remasking_strategy"]
    scheduler: dict[str, Any] = {"steps": total_steps(case)}
    if strategy == "low_confidence_dynamic":
        bar = {"threshold": args["confidence_threshold"], "quota": "least"}
        scheduler |= {"name": "quota_threshold", **bar}
    else:
        order = {"low_confidence_static": "confidence", "sequential": "sequential"}[strategy]
        scheduler |= {"name": "fixed_quota", "schedule": "block", "order": order}
    return {**common(case), "scheduler": scheduler}


def sampling(case: Case) -> dict[str, Any]:
    args = case["args"]
    return {
        **greedy(case),
        "temperature": args["temperature"],
        "logits_processors": (Likeliest(args["top_k"]),) if args["top_k"] else (),
        "top_p": args["top_p"],
        "confidence": "tempered",
        "noise": SDARNoise(case["torch_seed"], args["block_length"]),
    }


METHODS = {
    "sdar_bd3": evaluation,
    "sdar_generate_greedy": greedy,
    "sdar_generate_sampling": sampling,
}
