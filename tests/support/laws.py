"""Schedulers and caches at settings that laws run with, and laws that other tests check too."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import pytest
import torch

import dllm
from dllm.registry import Registry
from tests.support import DATA, GOLDEN
from tests.support.marks import SLOW, WHOLE, covering
from tests.support.models import golden_model, model_of, random_prompts, taught

FREQUENCIES = str(DATA / "frequencies.json")  # of 116 tokens, as many as "tiny" has
CONTEXT = str(DATA / "context_filter.safetensors")  # weights at random
FILTER = str(GOLDEN / "models" / "l2p_filter" / "filter16.safetensors")


# Settings that canvases of a few blocks of 8 tell apart, the first of each in the fast suite.
# A method without an entry runs at its defaults: a new file is found without one.
OF_SCHEDULERS: dict[str, tuple[Any, ...]] = {
    "adablock": (
        {"name": "adablock", "delimiters": (6, 47, 113), "inner": "slowfast:0.5", "reach": 0.5},
        {"name": "adablock", "delimiters": (6, 47, 113), "inner": "threshold:0.5"},
    ),
    "certainty_density": ("certainty_density:0.4",),
    "context_filter": (
        f"context_filter:{CONTEXT},threshold=0.5,far_threshold=0.7,reach=3",
        "context_filter:threshold=0.4,far_threshold=0.6,reach=3",
    ),
    "credit": ("credit:0.6",),
    "dimple": ("dimple:0.7",),
    "dream": (
        "dream:topk_margin,order_temperature=0.5",
        "dream:entropy",
        "dream:maskgit_plus,steps=8",
        "dream:origin,steps=16",
    ),
    "dynamic_dllm": ("dynamic_dllm:0.5,fall=0.05", "dynamic_dllm:0.6,per_column=true"),
    "end_of_text": (
        "end_of_text:threshold:0.4",
        "end_of_text:fixed_quota,rule=predicted",
        {
            "name": "end_of_text",
            "inner": {"name": "learn2pd", "filter": FILTER, "threshold": 0.6},
            "rule": "accepted",
        },
    ),
    "entropy_bound": ("entropy_bound:3",),
    "ete": ("ete:0.5,mode=commit,scope=window,blocks=2", "ete@paper_like:threshold=0.5"),
    "factor": ("factor:1.0",),
    "fixed_quota": (
        "fixed_quota",
        "fixed_quota:steps=8",
        "fixed_quota:steps=16,order=random",
        "fixed_quota:steps=16,order=planned",
    ),
    "hierarchical": (
        "hierarchical:0.5,low_threshold=0.2,remask_threshold=0.4",
        "hierarchical:0.6,low_threshold=0.2",
    ),
    "info_gain": (
        "info_gain:3,position_temperature=0.5,threshold=0.4",
        "info_gain@lookum:4,threshold=0",
    ),
    "insert_delete": (
        "insert_delete:0.4,editing_threshold=0.3,post_steps=3,delete_token_id=25,split_token_id=114",
    ),
    "klass": ("klass:0.4,kl_threshold=0.5",),
    "learn2pd": (
        f"learn2pd:{FILTER},threshold=0.6",
        f"learn2pd:{FILTER},threshold=0.7,steps=16",
    ),
    "localleap": ("localleap:0.7,relaxed_threshold=0.4,radius=2",),
    "lopa": ("lopa:0.6,branches=3",),
    "multi_block": ("multi_block:0.4,blocks=3",),
    "pc_sampler": (
        f"pc_sampler:{FREQUENCIES},decay=0.1,cap=10",
        "pc_sampler:decay=0.25,steps=8",
    ),
    "prophet": (
        "prophet:inner=threshold,high=2.5,mid=1.5,low=1",
        "prophet:region=fixed,answer_start=8,high=3,mid=2,low=1",
    ),
    "quota_threshold": ("quota_threshold:0.5,steps=8",),
    "renoise": (),  # refuses masks; tests/models/test_diffusion_gemma.py has its laws
    "rcr": ("rcr", "rcr:16,schedule=cosine"),
    "remdm": ("remdm:remask=2,begin=0.5,loops=4",),
    "relaxed_threshold": ("relaxed_threshold:0.4,relax=0.5,window=8",),
    "saber": ("saber:4",),
    "sliding": ("sliding:threshold:0.3", {"name": "sliding", "inner": "threshold:0.3", "most": 9}),
    "slowfast": ("slowfast:0.5,low=0.2", "slowfast@code:0.5,most_slow=3"),
    "threshold": ("threshold:0.3", "threshold:0.9"),
    "token_editing": ("token_editing:0.4,editing_threshold=0.3,post_steps=3",),
    "wedlm": ("wedlm:2,penalty=0.1", "wedlm:null"),
    "wino": ("wino:0.4,threshold_back=0.5",),
}
OF_CACHES: dict[str, tuple[Any, ...]] = {
    "d2cache": ("d2cache:4", "d2cache:12,rollout=0.3,sigma=2,gap=0"),
    "dkv": ("dkv:3", "dkv@pd:3"),
    "dkv_greedy": ("dkv_greedy:3,window=2",),
    "dllm_cache": ("dllm_cache:6,answer_every=4",),
    "dsb": ("dsb:3,after=2,refresh=5", "dsb:0"),
    "dynamic_dllm": (
        "dynamic_dllm:6,answer_every=4,window=4,budget=3",
        "dynamic_dllm:9,answer_every=5,window=0,budget=4,sharpness=0",
    ),
    "dual": ("dual", "dual:vicinity_before=3,vicinity_after=5", "dual:refresh_every=3"),
    "pruned_suffix": ("pruned_suffix:5", "pruned_suffix:0,tail=0"),
    "spa": ("spa:6,answer_every=4,rank=4", "spa:5,answer_every=5,most=0.5,place=0.3,rank=2"),
    "sparse": ("sparse:0.5,kernel=3", "sparse:0.3,kernel=1,delay=0"),
    "sub_block": ("sub_block:4",),
    "window_diffusion": (
        "window_diffusion:4,window=10,refresh=5",
        "window_diffusion:4,window=10,refresh=5,pruned=true,contiguous=true,slides=false",
    ),
}


def settings_of(registry: Registry[Any], options: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """Returns all methods of a registry, each at the settings of a table or at its defaults."""
    return [given for name in registry.names() for given in options.get(name, (name,))]


def name_of(given: Any) -> str:
    """Returns the name of a method given in a short form or as a mapping."""
    text = given["name"] if isinstance(given, Mapping) else given
    return re.split("[:@]", str(text))[0]


def text_of(given: Any) -> str:
    """Returns a short name of a setting, for a test's id."""
    return name_of(given) if isinstance(given, Mapping) else str(given).replace(f"{GOLDEN}/", "")


def is_first(given: Any) -> bool:
    """Returns whether a setting is the one of its method that the fast suite runs."""
    return bool({**OF_SCHEDULERS, **OF_CACHES}.get(name_of(given), (given,))[0] == given)


def grows(scheduler: Any) -> bool:
    """Returns whether a scheduler lets a gap grow, which no cache and no block can follow."""
    return bool(dllm.schedulers.registry.create(scheduler).needs(32, 8).room)


def options_of(scheduler: Any, **options: Any) -> dict[str, Any]:
    """Returns options with a scheduler, without the `block_length` if it takes none."""
    whole = {"block_length": None} if grows(scheduler) else {}
    return {**options, "scheduler": scheduler, **whole}


def suited(model: dllm.HostedModel, scheduler: Any) -> dllm.HostedModel:
    """Returns a model as a scheduler needs it: with a token that asks for room, if it grows a gap.

    Others get the model as it is, which is not to depend on a token that they do not know.
    """
    return taught(model) if grows(scheduler) else model


def core_of(scheduler: Any) -> str:
    """Returns the cache that leaves most logits out, of those that a scheduler goes with."""
    return "none" if grows(scheduler) else CORE


def refusal(model: str, scheduler: Any, cached: Any) -> str:
    """Returns why a scheduler and a cache are refused for a model, '' if they are not."""
    hosted, options = suited(model_of(model), scheduler), options_of(scheduler, **SLOTS)
    try:
        dllm.stream(hosted, [[1]], cache=cached, **options)
    except ValueError as error:
        return str(error)
    return ""


@cache
def partner(model: str, cached: Any) -> str | None:
    """Returns a plain scheduler that runs with a cache on a model, None if the cache does not."""
    return next((s for s in (PLAIN, PLANNED) if not refusal(model, s, cached)), None)


def caches_on(model: str) -> list[Any]:
    """Returns the caches, at their settings, that serve a model with schedulers of all kinds."""
    return [cached for cached in CACHES if partner(model, cached) == PLAIN]


def served(model: str, cached: Any) -> list[Any]:
    """Returns the schedulers that run with a cache on a model, as parameters of a test.

    The first settings of each are for the fast suite.
    """
    return [
        pytest.param(it, marks=() if is_first(it) else pytest.mark.slow, id=text_of(it))
        for it in SCHEDULERS
        if not refusal(model, it, cached)
    ]


def pairs_on(model: str) -> list[tuple[Any, Any]]:
    """Returns all schedulers with all caches that serve a model, at their first settings.

    Other settings of a scheduler come with the core, those of a cache with a plain scheduler.
    """
    found = [
        (scheduler, cached)
        for scheduler, cached in itertools.product(SCHEDULERS, caches_on(model))
        if (is_first(scheduler) or cached == CORE) and (is_first(cached) or scheduler == PLAIN)
        if cached == "none" or not grows(scheduler)  # a gap that grows goes without
    ]
    return found + [(PLANNED, cached) for cached in CACHES if partner(model, cached) == PLANNED]


@cache
def share_of(model: str, law: str) -> frozenset[tuple[str, str]]:
    """Returns the schedulers with the caches that the slow suite has of one of `SHARING`, as text.

    Each pair of a scheduler and a cache is in the share of some law, and each of both in the share
    of every law.
    """
    pairs = [(text_of(scheduler), text_of(cached)) for scheduler, cached in pairs_on(model)]
    laws = len(SHARING)
    turned = itertools.product(enumerate(pairs), range(laws))  # so that shares are about equal
    cases = [(SHARING[(place + turn) % laws], *pair) for (place, pair), turn in turned]
    chosen = [cases[place] for place in covering(cases)]
    return frozenset((scheduler, cached) for name, scheduler, cached in chosen if name == law)


def marks_in(law: str, model: str, scheduler: Any, cached: Any) -> tuple[pytest.MarkDecorator, ...]:
    """Returns the marks of a pair that the fast suite leaves out; no law is one that has all."""
    own = not law or (text_of(scheduler), text_of(cached)) in share_of(model, law)
    return SLOW if own else WHOLE


# Laws that divide the pairs of schedulers and caches among them. That a row does not depend on its
# batch is checked with every pair: a pair is what breaks it.
SHARING = ("shifted", "unknown logits", "fixed tokens", "transfers", "waiting rows")
CORE = "dkv:3"  # the cache that leaves most logits out
PLAIN = "threshold:0.3"
PLANNED = "fixed_quota:steps=16,order=planned"  # for caches that feed what the next step commits
SCHEDULERS = settings_of(dllm.schedulers.registry, OF_SCHEDULERS)
CACHES = settings_of(dllm.cache.registry, OF_CACHES)
SLOTS: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8}
COUNTED = ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy", "nonzero")


def check_fixed_tokens(scheduler: Any, cache: Any) -> None:
    """Fails where a fixed token moves, or a mask stays."""
    if grows(scheduler):
        check_surroundings(scheduler, cache)
        return
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


def check_surroundings(scheduler: Any, cache: Any) -> None:
    """Fails where what stands around a gap is not there afterwards, or a mask stays.

    That is all the text that can be fixed where the columns of an answer come and go.
    """
    model = taught(golden_model("llada_gqa"))
    mask = model.spec.mask_token_id
    befores, afters = random_prompts(3), random_prompts(3, seed=1)
    rows = [[*before, *[mask] * 8, *after] for before, after in zip(befores, afters, strict=True)]
    out = dllm.generate(model, rows, scheduler=scheduler, cache=cache, infill=True, seed=0)
    for before, after, sequence in zip(befores, afters, out.sequences, strict=True):
        assert list(sequence[: len(before)]) == before
        assert list(sequence[len(sequence) - len(after) :]) == after
        assert mask not in sequence
    with pytest.raises(ValueError, match="lets one gap"):
        dllm.generate(model, [[1]], fixed={3: 5}, **options_of(scheduler, **SLOTS))


def transfers_of(events: Iterable[Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns how often each step that is left of a stream waits for the device."""
    transfers = [0]

    def counted(original: Any) -> Any:
        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            transfers[0] += 1
            return original(self, *args, **kwargs)

        return call

    for name in COUNTED:
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    totals = [0, *(transfers[0] for _ in events)]
    return [after - before for before, after in itertools.pairwise(totals)]


def check_host_transfers(scheduler: Any, cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a step waits for the device more often than once."""
    compares = dllm.schedulers.registry.create(scheduler).needs(32, 8).num_variants > 1
    options = options_of(scheduler, **SLOTS, seed=0, temperature=0.0 if compares else 0.5)
    model = suited(golden_model("llada_gqa"), scheduler)
    running = dllm.stream(model, random_prompts(4), cache=cache, **options)
    events = iter(running)
    next(events)  # tables are built once
    assert set(transfers_of(itertools.islice(events, 3), monkeypatch)) <= {1}
