"""Settings that replay DreamLM/Dream and Fast-dLLM's two versions of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.golden.methods.llada import LLaDANoise

Case = dict[str, Any]


class DreamNoise(LLaDANoise):
    """Dream's `origin` draws one number for each masked column, in order."""

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        drawn = torch.rand(int(masked.sum()), generator=self.source)
        uniform = torch.ones(masked.shape)
        uniform[masked] = drawn
        return uniform


def dream(case: Case) -> dict[str, Any]:
    args = case["args"]
    scheduler = {
        "name": "dream",
        "algorithm": args["alg"],
        "steps": args["steps"],
        "empty_steps": True,
    }
    settings: dict[str, Any] = {"scheduler": scheduler}
    if "torch_seed" in case:
        settings["noise"] = DreamNoise(case["torch_seed"], 0)
    return settings


def fast_dllm_dream(case: Case) -> dict[str, Any]:
    args = case["args"]
    threshold, steps = args["threshold"], args["steps"]
    scheduler = {"name": "quota_threshold", "threshold": threshold, "steps": steps}
    return {"scheduler": scheduler, "top_k": 50, "confidence": "tempered"}


def fast_dllm_dream_block(case: Case) -> dict[str, Any]:
    args = case["args"]
    if args["alg"] == "confidence_threshold":
        scheduler = {"name": "threshold", "threshold": args["threshold"]}
    else:
        scheduler = {"name": "dream", "steps": args["steps"], "empty_steps": True}
    name = "dual" if args["dual_cache"] else "prefix"
    return {"scheduler": scheduler, "cache": {"name": name, "first_token": "force"}}


METHODS = {
    "dream_maskgit_plus": dream,
    "dream_topk_margin": dream,
    "dream_entropy": dream,
    "dream_origin": dream,
    "fastdllm_dream_threshold": fast_dllm_dream,
    "fastdllm_dream_block_prefix": fast_dllm_dream_block,
    "fastdllm_dream_block_dual": fast_dllm_dream_block,
}
