"""Settings that replay ML-GSAI/LLaDA generate.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Case = dict[str, Any]


class LLaDANoise:
    """The official draws: uniform noise for the whole canvas from torch's CPU generator."""

    def __init__(self, seed: int, length: int) -> None:
        self.source = torch.Generator().manual_seed(seed)
        self.length = length

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        shape = (1, self.length, vocab_size)
        drawn = torch.rand(shape, generator=self.source, dtype=torch.float64)
        return drawn.gather(1, columns[..., None].expand(-1, -1, vocab_size))

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        return torch.rand((1, self.length), generator=self.source).gather(1, columns)


def llada(case: Case) -> dict[str, Any]:
    args = case["args"]
    random = args["remasking"] == "random"
    scheduler = {"name": "fixed_quota", "steps": args["steps"]}
    settings: dict[str, Any] = {
        "scheduler": {**scheduler, "order": "random" if random else "confidence"},
        "guidance_scale": args.get("cfg_scale", 0.0),
        "temperature": args["temperature"],
    }
    if "torch_seed" in case:
        length = len(case["prompt"]) + args["gen_length"]
        settings["noise"] = LLaDANoise(case["torch_seed"], length)
    if args.get("logits_eos_inf"):
        settings["forbidden_token_ids"] = (127,)
    if args.get("confidence_eos_eot_inf"):
        settings["deferred_token_ids"] = (127, case["eot_id"])
    return settings


METHODS = {
    "llada_vanilla": llada,  # on LLaDA-MoE
    "llada_low_confidence": llada,
    "llada_cfg": llada,
    "llada_eos_option": llada,
    "llada_random": llada,
    "llada_gumbel": llada,
}
