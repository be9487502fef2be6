"""Every scheduler with every cache on every kind of model: it runs, or is refused with a reason.

    python -m tests.laws.test_combinations

writes what was found into docs/guides/caches.md.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch

import dllm
from dllm.generate import Stream
from dllm.schedulers import registry as schedulers
from tests.support import ROOT
from tests.support.laws import OF_CACHES, OF_SCHEDULERS, grows, options_of, suited
from tests.support.marks import covering
from tests.support.models import model_of, random_prompts

PAGE = ROOT / "docs" / "guides" / "caches.md"
MARKER = "<!-- generated: `python -m tests.laws.test_combinations` writes what follows -->"

SLOTS: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8, "seed": 0}
CACHES = {name: OF_CACHES.get(name, (name,))[0] for name in dllm.cache.registry.names()}
SCHEDULERS: dict[str, Any] = {  # others at their defaults
    "fixed_quota": "fixed_quota",
    "fixed_quota:order=planned": "fixed_quota:order=planned",
    "adablock": {"name": "adablock", "delimiters": (6, 47, 113), "inner": "threshold:0.5"},
    "end_of_text": "end_of_text:threshold:0.5",
    "insert_delete": "insert_delete:0.4,delete_token_id=25,split_token_id=114",
    "learn2pd": {"name": "learn2pd", "foreign": True},
    "quota_threshold": "quota_threshold:steps=24",  # blocks of a row: 2, or 3 from column 0
    "token_editing": "token_editing:0.4,editing_threshold=0.4",
}
MODELS = ("tiny", "llada_gqa", "dream_gqa", "sdar", "fast_dllm_v2", "wedlm", "e2d2")
QUICK = (
    "llada_gqa",
    "fast_dllm_v2",
    "wedlm",
)  # unlike in all: attention, shift, reach of a refusal
KINDS = {
    "tiny": "full",
    "llada_gqa": "full, grouped queries",
    "dream_gqa": "full, shifted",
    "sdar": "block-causal",
    "fast_dllm_v2": "block-causal, shifted",
    "wedlm": "masks last",
    "e2d2": "encoder and decoder",
}
Cell = tuple[str, str, str]  # scheduler, cache, model


@cache
def model(name: str) -> dllm.HostedModel:
    return model_of(name, "float32")


def all_schedulers() -> dict[str, Any]:
    filling = [name for name in schedulers.names() if OF_SCHEDULERS.get(name) != ()]
    return {**{name: name for name in filling}, **SCHEDULERS}


def started(cell: Cell) -> Stream:
    """Returns a combination about to run on rows of different lengths; ValueError refuses it."""
    scheduler, cached, name = cell
    given = all_schedulers()[scheduler]
    prompts = [[token % 90 for token in row] for row in random_prompts(3, low=3, high=14)]
    options = options_of(given, cache=CACHES[cached], **SLOTS)
    return dllm.stream(suited(model(name), given), prompts, **options)


@cache
def refusal(cell: Cell) -> str:
    """Returns why a combination is refused, '' if it is not; nothing is decoded for that."""
    try:
        started(cell)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.few(4)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_refused_has_a_reason(name: str) -> None:
    for cached, scheduler in itertools.product(CACHES, all_schedulers()):
        cell = scheduler, cached, name
        assert not refusal(cell) or len(refusal(cell)) > 30, refusal(cell)
        assert (refusal(cell) == "") == (exception(cell) is None), (cell, refusal(cell))


def check_runs(cell: Cell) -> None:
    if not refusal(cell):
        running = started(cell)
        for _ in running:
            pass
        mask_token_id = model(cell[2]).spec.mask_token_id
        assert mask_token_id not in itertools.chain(*running.output.sequences), cell


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("cached", CACHES)
def test_a_part_of_what_is_not_refused_runs(cached: str, name: str) -> None:
    """Each scheduler with some cache and each cache with some scheduler, on two unlike models."""
    place, step = list(CACHES).index(cached) + 3 * QUICK.index(name), len(CACHES)
    for scheduler in list(all_schedulers())[place % step :: step]:
        check_runs((scheduler, cached, name))


@cache
def typical() -> frozenset[Cell]:
    """Returns few combinations with each pair of scheduler, cache and model that some one has."""
    cells = itertools.product(all_schedulers(), CACHES, MODELS)
    running = [cell for cell in cells if exception(cell) is None]
    return frozenset(running[place] for place in covering(running))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cached", CACHES)
def test_every_pair_that_is_not_refused_runs(cached: str, name: str) -> None:
    for scheduler in all_schedulers():
        if (scheduler, cached, name) in typical():
            check_runs((scheduler, cached, name))


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cached", CACHES)
def test_whatever_is_not_refused_runs(cached: str, name: str) -> None:
    for scheduler in all_schedulers():
        check_runs((scheduler, cached, name))


def exception(cell: Cell) -> str | None:
    """Returns why a combination is not expected to run, None if it is."""
    scheduler, cached, name = cell
    if grows(all_schedulers()[scheduler]) and (cached, KINDS[name][:4]) != ("none", "full"):
        return "text behind the gap moves"
    compares = scheduler in ("ete", "info_gain", "lopa")
    if name == "wedlm" and (cached not in ("none", "streaming") or compares):
        return "a commit changes what is seen"
    if (name == "e2d2") != (cached == "encoder") and (name, cached) != ("e2d2", "none"):
        return "one stack or two"
    if cached == "streaming" and name != "wedlm":
        return "tokens see to their right"
    exact = cached in ("block_causal", "sub_block")
    if exact and not KINDS[name].startswith("block-causal"):
        return "the model is not block-causal"
    if cached in ("sparse", "d2cache", "dsb", "free") and KINDS[name].startswith("block-causal"):
        return "the block sees one side"
    if cached == "dkv_greedy" and scheduler != "fixed_quota:order=planned":
        return "it must know the order beforehand"
    if scheduler == "wino" and KINDS[name] not in ("full", "full, grouped queries"):
        return "a shadow stands at its own column"
    return None


def table() -> str:
    """Returns the Markdown of which schedulers run with each cache on each kind of model."""
    rows = [f"| cache | {' | '.join(KINDS[name] for name in MODELS)} |"]
    rows.append("| --- " * (len(MODELS) + 1) + "|")
    for cached in CACHES:
        cells = [served(cached, name) for name in MODELS]
        rows.append(f"| `{cached}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def served(cached: str, name: str) -> str:
    """Returns which schedulers run, in words."""
    ran = [it for it in all_schedulers() if not refusal((it, cached, name))]
    refused = [it for it in all_schedulers() if it not in ran]
    if not refused:
        return "all"
    if not ran:
        return "none"
    listed = ", ".join(f"`{it}`" for it in min(ran, refused, key=len))
    return f"all but {listed}" if len(refused) < len(ran) else f"{listed} only"


def test_the_page_says_what_was_found() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(MARKER)[2].strip() == table().strip()


if __name__ == "__main__":
    torch.set_num_threads(1)
    written = PAGE.read_text(encoding="utf-8").partition(MARKER)[0]
    PAGE.write_text(f"{written}{MARKER}\n\n{table()}\n", encoding="utf-8")
