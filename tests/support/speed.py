"""Decodings that ways of speeding up must not change: families, caches, schedulers, a verifier."""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

import dllm
from tests.support.models import family_model, golden_model, random_prompts

FULL = ("llada_mha", "llada_gqa", "dream_gqa")
CAUSAL = ("sdar", "fast_dllm_v2")
SCHEDULERS = ("fixed_quota", "threshold:0.4", "localleap")
PROMPTS = [[token % 90 for token in row] for row in random_prompts(3, low=3, high=14)]


Decoding = tuple[str, dict[str, Any]]  # a model's name, and settings


def decodings() -> list[Decoding]:
    """Returns every family with every cache and scheduler, and with a verifier."""
    plans: list[Decoding] = []
    for name in (*FULL, *CAUSAL):
        caches = ("none", "prefix", "dual") if name in FULL else ("none", "block_causal")
        plans += [(name, {"cache": c, "scheduler": s}) for c in caches for s in SCHEDULERS]
        ssd = {"cache": caches[-1], "scheduler": "fixed_quota", "verifier": "ssd"}
        plans += [(name, ssd)]
    last = itertools.product(("streaming", "none"), ("wedlm:2", *SCHEDULERS))
    plans += [("wedlm", {"cache": c, "scheduler": s}) for c, s in last]
    return plans


def cases() -> list[Any]:
    """Returns the place of each decoding as a parameter; every fourth is in the fast suite.

    That is each cache, scheduler and family at least once, and the verifier.
    """
    return [
        pytest.param(
            place,
            id="-".join([name, *map(str, settings.values())]),
            marks=() if place % 4 == 1 else pytest.mark.slow,
        )
        for place, (name, settings) in enumerate(decodings())
    ]


@cache
def model_of(name: str) -> dllm.HostedModel:
    """Returns a model in float32, which no test may change in place."""
    if name in FULL:
        return golden_model(name, "float32")
    model = family_model(name)  # shared by all tests, in float64
    return replace(model, network=deepcopy(model.network).float())


def decode(model: dllm.HostedModel, settings: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Returns the tokens of rows of different lengths, or of the first alone under a verifier."""
    prompts = PROMPTS[:1] if "verifier" in settings else PROMPTS
    out = dllm.generate(model, prompts, max_new_tokens=32, block_length=8, seed=0, **settings)
    return tuple(tuple(row) for row in out.sequences)


@cache
def usual(place: int) -> tuple[tuple[int, ...], ...]:
    """Returns the tokens of a decoding without any speed-up."""
    name, settings = decodings()[place]
    return decode(model_of(name), settings)
