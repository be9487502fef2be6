"""Settings that replay horseee/dKV-Cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.golden.methods.dream import dream

Case = dict[str, Any]


def decode(case: Case) -> dict[str, Any]:
    args = case["args"]
    cache = {"name": "dkv", "refresh": args["cache_reloading_step"]}
    return {
        "scheduler": {"name": "fixed_quota", "steps": args["steps"]},
        "cache": cache if args["enable_cache"] else "none",
    }


class PlannedNoise:
    """The recorded order of each block, whatever is asked for."""

    def __init__(self, blocks: list[list[int]]) -> None:
        self.place = {column: place for block in blocks for place, column in enumerate(block)}

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        raise AssertionError("greedy decoding draws no tokens")

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        places = [[self.place.get(column, 0) for column in row] for row in columns.tolist()]
        return 1 - torch.tensor(places) / 1000


def greedy(case: Case) -> dict[str, Any]:
    args = case["args"]
    window, refresh = args["window_size"], args["cache_reloading_step"]
    cache = {"name": "dkv_greedy", "window": window, "refresh": refresh}
    return {
        "scheduler": {"name": "fixed_quota", "steps": args["steps"], "order": "planned"},
        "cache": cache if args["enable_cache"] else "none",
        "noise": PlannedNoise(case["order_per_block"]),
    }


def of_dream(case: Case) -> dict[str, Any]:
    args = case["args"]
    shift = "un_right" if args["shift_type"] == "right" else args["shift_type"]
    cache: dict[str, Any] = {"name": "dkv", "warmup": 1, "shift": shift}
    if args["cache_type"] == "prefill":
        cache |= {"refresh": None, "prompt": "once", "decoded": False}
    else:
        once = args["cache_type"] == "pd"
        cache |= {"refresh": args["cache_steps"], "prompt": "once" if once else "refresh"}
    return {**dream(case), "cache": cache, "top_k": 50}


METHODS = {
    "dkv_decode": decode,
    "dkv_greedy": greedy,
    "dkv_dream_decoded": of_dream,
    "dkv_dream_prefill": of_dream,
    "dkv_dream_pd": of_dream,
}
