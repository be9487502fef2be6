"""Schedulers and caches at settings that laws run with, and laws that other tests check too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dllm
from tests.support import GOLDEN
from tests.support.models import golden_model, random_prompts

FILTER = str(GOLDEN / "models" / "l2p_filter" / "filter16.safetensors")


SCHEDULERS: list[Any] = [
    "fixed_quota",
    "fixed_quota:steps=8",
    "fixed_quota:steps=16,order=random",
    "threshold:0.9",
    "threshold:0.3",
    "factor:1.0",
    "dream:entropy",
    "dream:maskgit_plus,steps=8",
    "dream:topk_margin,order_temperature=0.5",
    "dream:origin,steps=16",
    "quota_threshold:0.5,steps=8",
    "localleap:0.7,relaxed_threshold=0.4,radius=2",
    "multi_block:0.4,blocks=3",
    "ete@paper_like:threshold=0.5",
    "ete:0.5,mode=commit,scope=window,blocks=2",
    "lopa:0.6,branches=3",
    "token_editing:0.4,editing_threshold=0.3,post_steps=3",
    "rcr",
    "rcr:16,schedule=cosine",
    "remdm:remask=2,begin=0.5,loops=4",
    "dimple:0.7",
    "slowfast:0.5,low=0.2",
    "slowfast@code:0.5,most_slow=3",
    {"name": "adablock", "delimiters": (6, 47, 113), "inner": "slowfast:0.5", "reach": 0.5},
    {"name": "adablock", "delimiters": (6, 47, 113), "inner": "threshold:0.5"},
    "prophet:inner=threshold,high=2.5,mid=1.5,low=1",
    "prophet:region=fixed,answer_start=8,high=3,mid=2,low=1",
    "wino:0.4,threshold_back=0.5",
    "klass:0.4,kl_threshold=0.5",
    "entropy_bound:3",
    "certainty_density:0.4",
    "hierarchical:0.6,low_threshold=0.2",
    "hierarchical:0.5,low_threshold=0.2,remask_threshold=0.4",
    "credit:0.6",
    f"learn2pd:{FILTER},threshold=0.6",
    f"learn2pd:{FILTER},threshold=0.7,steps=16",
    "end_of_text:threshold:0.4",
    "end_of_text:fixed_quota,rule=predicted",
    {
        "name": "end_of_text",
        "inner": {"name": "learn2pd", "filter": FILTER, "threshold": 0.6},
        "rule": "accepted",
    },
]


CACHES: list[Any] = [
    "none",
    "prefix",
    "dual",
    "dual:vicinity_before=3,vicinity_after=5",
    "dkv:3",
    "dkv@pd:3",
    "window_diffusion:4,window=10,refresh=5",
    "window_diffusion:4,window=10,refresh=5,pruned=true,contiguous=true,slides=false",
    "dual:refresh_every=3",
    "sparse:0.5,kernel=3",
    "sparse:0.3,kernel=1,delay=0",
    "d2cache:4",
    "d2cache:12,rollout=0.3,sigma=2,gap=0",
    "dllm_cache:6,answer_every=4",
]


SLOTS: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8}


COUNTED = ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy", "nonzero")


def check_fixed_tokens(scheduler: Any, cache: Any) -> None:
    """Fails where a fixed token moves, or a mask stays."""
    model = golden_model("llada_gqa")
    prompts = random_prompts(3)
    fixed = {0: 5, 13: 6, 31: 7}
    options: dict[str, Any] = {**SLOTS, "fixed": fixed, "seed": 0}
    out = dllm.generate(model, prompts, scheduler=scheduler, cache=cache, **options)
    for prompt, sequence in zip(prompts, out.sequences, strict=True):
        answer = sequence[len(prompt) :]
        assert list(sequence[: len(prompt)]) == prompt
        assert {offset: answer[offset] for offset in fixed} == fixed
        assert model.spec.mask_token_id not in sequence


def check_host_transfers(scheduler: Any, cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a step waits for the device more often than once."""
    compares = dllm.schedulers.registry.create(scheduler).needs(32, 8).branches > 1
    options: dict[str, Any] = {**SLOTS, "seed": 0, "temperature": 0.0 if compares else 0.5}
    running = dllm.stream(
        golden_model("llada_gqa"), random_prompts(4), scheduler=scheduler, cache=cache, **options
    )
    transfers = [0]

    def counted(original: Any) -> Any:
        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            transfers[0] += 1
            return original(self, *args, **kwargs)

        return call

    events = iter(running)
    next(events)  # tables are built once
    for name in COUNTED:
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    for _ in range(3):
        before = transfers[0]
        if next(events, None) is None:
            break
        assert transfers[0] - before == 1
