"""Insertion and deletion: how a block is rearranged, by hand, and that it happens in a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.schedulers import Decision
from dllm.schedulers.insert_delete import InsertDelete
from dllm.state.candidates import Candidates
from tests.support.models import golden_model, random_prompts
from tests.support.views import MASK, SETUP, view_of

DELETE, SPLIT = 8, 9
OPTIONS: dict[str, Any] = {"delete_token_id": DELETE, "split_token_id": SPLIT}


def decide(
    there: list[int],
    proposed: list[int],
    fixed: tuple[int, ...] = (),
    seen: bool = False,
    **given: Any,
) -> tuple[list[int], Decision]:
    """Returns a block of 6 after one forward that is sure of what it proposes, and the decision."""
    scheduler = InsertDelete(**{"threshold": 0.5, "editing_threshold": 0.5, **OPTIONS, **given})
    logits = torch.zeros(1, 6, 11).scatter(2, torch.tensor([proposed])[..., None], 9.0)
    tokens = torch.tensor([there])
    still = torch.zeros_like(tokens, dtype=torch.bool)
    still[0, list(fixed)] = True
    state, masked = scheduler.start(vars_of(rows=1)), (tokens == MASK) & ~still
    options: dict[str, Any] = {"tokens": tokens, "fixed": still, "state": state}
    if seen:  # before its first forward, which chose what is proposed again
        state["seen"][0, 0], state["tried"][0, 0] = tokens[0], torch.tensor(proposed)
        state["original"][:] = masked
    view = view_of(masked, block_step=int(seen), **options)
    text = logits.clone()
    text[..., MASK] = -torch.inf
    decision = scheduler.decide(Candidates(logits, text.argmax(-1)), view)
    return written(tokens, decision), decision


def vars_of(rows: int) -> Any:
    return type(SETUP)(**{**vars(SETUP), "num_rows": rows, "width": 6, "block_length": 6})


def written(tokens: Tensor, decision: Decision) -> list[int]:
    assert decision.tokens is not None
    assert decision.edit is not None
    assert decision.remask is not None
    after = torch.where(decision.commit | decision.edit, decision.tokens, tokens)
    return list(after.masked_fill(decision.remask, MASK)[0].tolist())


def test_what_follows_a_deleted_token_moves_left() -> None:
    after, decision = decide([1, 2, 3, 4, MASK, MASK], [1, DELETE, 3, 4, 5, 6])
    assert after == [1, 3, 4, 5, 6, MASK]
    assert decision.state is not None
    # The last mask came in; those of the beginning are the two that moved.
    assert decision.state["original"].tolist() == [[False, False, False, True, True, False]]
    after, _ = decide([1, 2, 3, 4, 5, MASK], [DELETE] * 6)
    assert after == [MASK] * 6


def test_what_is_split_moves_right_behind_a_mask() -> None:
    assert decide([1, 2, 3, 4, MASK, MASK], [1, SPLIT, 3, 4, 5, 6])[0] == [1, MASK, 2, 3, 4, 5]
    assert decide([1, 2, 3, 4, 5, MASK], [SPLIT] * 6)[0] == [MASK, 1, MASK, 2, MASK, 3]
    # A mask that is split stays behind the new one.
    after, decision = decide([1, MASK, 3, 4, 5, 6], [1, SPLIT, 3, 4, 5, 6])
    assert after == [1, MASK, MASK, 3, 4, 5]
    assert decision.state is not None
    assert decision.state["original"].tolist() == [[False, False, True, False, False, False]]


def test_both_in_one_forward() -> None:
    assert decide([1, 2, 3, 4, 5, MASK], [DELETE, 2, SPLIT, 4, DELETE, 7])[0] == [
        2,
        MASK,
        3,
        4,
        7,
        MASK,
    ]


def test_given_text_stays_and_nothing_moves_past_it() -> None:
    there, proposed = [1, 2, 3, 4, 5, MASK], [DELETE, 2, 7, SPLIT, 5, 6]
    assert decide(there, proposed, fixed=(2,))[0] == [2, MASK, 3, MASK, 4, 5]
    assert decide([1, 2, 3, 4, 5, MASK], [SPLIT] * 6, fixed=(0, 1, 4))[0] == [
        1,
        2,
        MASK,
        3,
        5,
        MASK,
    ]
    assert decide([DELETE, SPLIT, 3, 4, MASK, MASK], [1] * 6, fixed=(0, 1))[0][:2] == [
        DELETE,
        SPLIT,
    ]


def test_without_the_tokens_nothing_moves() -> None:
    none: dict[str, Any] = {"delete_token_id": None, "split_token_id": None}
    assert decide([1, 2, 3, 4, 5, MASK], [8, 9, 3, 8, 9, 8], **none)[0] == [8, 9, 3, 8, 9, 8]


def test_the_last_forward_writes_text_alone() -> None:
    there = [1, 2, 3, 4, 5, MASK]
    after, decision = decide(there, [DELETE, SPLIT, MASK, 4, 5, DELETE], post_steps=0)
    assert not {DELETE, SPLIT, MASK} & set(after)
    assert decision.hold is not None
    assert not decision.hold.any()


def test_a_block_that_was_seen_before_takes_another_way() -> None:
    there, proposed = [1, 2, 3, 4, 5, MASK], [1, 2, 3, 4, 7, 6]
    assert decide(there, proposed)[0] == proposed
    # Equally sure changes: the first of them becomes the best token not yet tried at its column.
    assert decide(there, proposed, seen=True)[0] == [1, 2, 3, 4, 0, 6]


def test_a_token_may_become_a_mask_again() -> None:
    after, _ = decide([1, 2, 3, 4, 5, MASK], [1, MASK, 3, 4, 5, MASK])
    assert after[:5] == [1, MASK, 3, 4, 5]
    assert after[5] != MASK  # a mask of the beginning is not left as it is


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_columns_come_and_go_in_a_run(cache: str) -> None:
    ids = {"delete_token_id": 25, "split_token_id": 114}
    options: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "at_eos": "ignore"}
    scheduler = {"name": "insert_delete", "threshold": 0.4, "editing_threshold": 0.3, **ids}
    model, prompts = golden_model("llada_gqa"), random_prompts(4)
    out = dllm.generate(model, prompts, scheduler=scheduler, cache=cache, **options)
    changes = out.trace.changes
    assert changes is not None
    writes = [pair for row in range(4) for step in out.trace.commits(row) for pair in step]
    assert any(token == 126 for _, token in writes), "nothing was inserted"
    for prompt, sequence in zip(prompts, out.sequences, strict=True):
        assert not {25, 114, 126} & set(sequence[len(prompt) :])


def test_a_model_without_such_a_token_is_refused() -> None:
    unknown = "insert_delete:delete_token_id=128"
    with pytest.raises(ValueError, match="delete_token_id"):
        dllm.generate(golden_model("llada_gqa"), [[1]], scheduler=unknown)
