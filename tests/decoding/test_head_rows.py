"""Logits are made of columns that a step may commit, and of no others, whatever a pass feeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

import dllm
from dllm.compatible import caches_of

BLOCK, NEW = 16, 48
PROMPT = "tom has 53 pens. tom loses 3. how many pens does tom have?"
TOGETHER = 8  # columns of which one more or less is not another shape
# d2cache ranks the masks of the whole answer by their certainty, so it reads logits of all.
CACHES = sorted(
    name
    for name, reason in caches_of(dllm.load("tiny")).items()
    if not reason and name != "d2cache"
)


@dataclass(frozen=True)
class Pass:
    """How many columns a pass fed, and of how many it made logits."""

    num_fed: int
    num_logits: int


def passes(cache: str, **settings: Any) -> list[Pass]:
    model = dllm.load("tiny")
    found: list[Pass] = []
    fed: list[int] = []
    embedding, head = model.network.embedding, model.network.head
    hooks = [
        embedding.register_forward_hook(lambda module, given, out: fed.append(out.shape[1])),
        head.register_forward_hook(
            lambda module, given, out: found.append(Pass(fed[-1], out.shape[1]))
        ),
    ]
    try:
        sizes: dict[str, Any] = {"max_new_tokens": NEW, "block_length": BLOCK}
        dllm.generate(model, [PROMPT], cache=cache, at_eos="ignore", **sizes, **settings)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@pytest.mark.parametrize("cache", CACHES)
def test_logits_are_of_masks_of_the_block(cache: str) -> None:
    """Two tokens a step: 16, 14, 12, ... masks, in groups of eight, block after block."""
    order = ":order=planned" if cache == "dkv_greedy" else ""
    found = passes(cache, scheduler=f"fixed_quota{order}", steps=NEW // 2)
    assert len(found) == NEW // 2
    assert max(one.num_fed for one in found) >= BLOCK
    of_a_block = [-(-left // TOGETHER) * TOGETHER for left in range(BLOCK, 0, -2)]
    assert [one.num_logits for one in found] == of_a_block * (NEW // BLOCK)


def test_a_refresh_of_the_whole_canvas_makes_no_more() -> None:
    found = passes("dual", scheduler="fixed_quota", steps=NEW // 2)
    whole = [one for one in found if one.num_fed > 2 * BLOCK]
    assert len(whole) == NEW // BLOCK  # each block begins with one
    assert {one.num_logits for one in whole} == {BLOCK}
