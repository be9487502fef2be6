"""Settings that replay kuleshov-group/e2d2, generation with its encoder and decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Case = dict[str, Any]


class E2D2Noise:
    """The draws of its sampling: one uniform for each token of each column of the block."""

    def __init__(self, seed: int, block: int, first: int) -> None:
        self.source = torch.Generator().manual_seed(seed)
        self.block, self.first = block, first

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        drawn = torch.rand(self.block, vocab_size, dtype=torch.float64, generator=self.source)
        return drawn[(columns - self.first) % self.block]

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        raise AssertionError("no order of E2D2 is random")


def first_block(case: Case) -> int:
    """Returns where blocks are counted from."""
    prompt, block = len(case["prompt"]), case["args"]["block_size"]
    return prompt - prompt % block if case["args"]["align_inputs_to_blocks"] else prompt


def num_slots(case: Case) -> int:
    """Returns how many columns are decoded: whole blocks, from where they are counted on.

    Where blocks begin in the prompt, the authors leave the last of their masks as they are.
    """
    args = case["args"]
    whole = args["max_new_tokens"] // args["block_size"] * args["block_size"]
    return int(first_block(case) + whole - len(case["prompt"]))


def generate(case: Case) -> dict[str, Any]:
    args, block = case["args"], case["args"]["block_size"]
    steps = min(args["num_steps"], block) if args["first_hitting"] else args["num_steps"]
    scheduler: dict[str, Any] = {
        "name": "predict_and_noise",
        "steps": steps * (args["max_new_tokens"] // block),
        "order": "margin" if args["confidence_margin_based_noising"] else "confidence",
        "least_time": args["min_t"],
    }
    if args["confidence_threshold"] <= 1:
        scheduler["threshold"] = args["confidence_threshold"]
    sampled: dict[str, Any] = {}
    if args["do_sample"]:
        noise = E2D2Noise(args["torch_seed"], block, first_block(case))
        sampled = {"temperature": 1.0, "noise": noise}
    # An end token counts at the end of a block alone, which a row that is decoded to its end says.
    stops = len(case["final"]) < len(case["prompt"]) + args["max_new_tokens"] // block * block
    return {
        "max_new_tokens": num_slots(case),
        "block_length": block,
        "blocks_from": "zero" if args["align_inputs_to_blocks"] else "prompt",
        "scheduler": scheduler,
        "cache": "encoder" if args["use_cache"] else "encoder:again=true",
        "at_eos": "block" if stops else "ignore",
        **({"eos_token_id": args["eos_token_id"]} if stops else {}),
        **sampled,
    }


METHODS = {"e2d2_generate": generate}
