"""Dynamic-dLLM's threshold: steps by hand, and whole runs beside the published loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import dllm
from dllm.schedulers import Decision
from dllm.schedulers.dynamic_dllm import DynamicThreshold
from dllm.state.candidates import Candidates
from dllm.state.carried import State, merged
from tests.support.marks import crossed
from tests.support.models import golden_model, random_prompts
from tests.support.views import SETUP, view_of


def of(columns: Sequence[Sequence[float]]) -> Candidates:
    """Candidates of one row over three tokens, with these probabilities of the first two."""
    given = torch.tensor([columns], dtype=torch.float64)
    full = torch.cat([given, 1 - given.sum(-1, keepdim=True)], -1)
    return Candidates(full.log(), full.argmax(-1))


def follow(
    scheduler: DynamicThreshold, steps: Sequence[Candidates], known: Sequence[Any] | None = None
) -> list[Decision]:
    """Decides step after step on masks of one row, to which nothing is written."""
    width = steps[0].token.shape[1]
    setup = replace(SETUP, num_rows=1, width=width, num_slots=width, vocab_size=3)
    state: State = scheduler.start(replace(setup, dtype=torch.float64))
    decisions = []
    for number, candidates in enumerate(steps):
        masked = torch.ones(1, width, dtype=torch.bool)
        seen = masked if known is None else torch.tensor([known[number]])
        view = view_of(masked & seen, block_step=number, state=state, known=seen)
        decision = scheduler.decide(candidates, view)
        everybody = torch.ones(1, dtype=torch.bool)
        state = merged(state, decision.state, decision.replaced, everybody)
        decisions.append(replace(decision, state=state))
    return decisions


def threshold(decision: Decision) -> list[float]:
    assert decision.state is not None
    found: list[float] = decision.state["threshold"][0].tolist()
    return found


# From (1, 0, 0) to (0.6, 0.8, 0) the cosine would be 0.6; these are distributions with that one.
FIRST, THEN = [0.98, 0.01], [3 / 7, 4 / 7]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    a, b = ([*it, 1 - sum(it)] for it in (one, other))
    norm = sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm


def test_steps_by_hand() -> None:
    scheduler = DynamicThreshold(1.0, fall=0.1, rise=0.2)
    still = [0.9, 0.08]
    first, second, third = follow(
        scheduler, [of([FIRST, still]), of([THEN, still]), of([THEN, still])]
    )
    assert threshold(first) == [1.0]
    assert first.commit.tolist() == [[True, False]]  # the surest one: nothing is above 1
    moved = (1 - cosine(FIRST, THEN)) / 2  # the second column stood still
    choices = (1 - 3 / 7 + 1 - 0.08) / 2
    assert threshold(second) == pytest.approx([1 - 0.1 * choices + 0.2 * moved])
    assert second.commit.tolist() == [[False, True]]
    assert threshold(third) == pytest.approx([1 - 0.2 * choices + 0.2 * moved])
    low = DynamicThreshold(0.62, fall=0.1, rise=0)
    *_, last = follow(low, [of([THEN, still])] * 2)
    assert threshold(last) == pytest.approx([0.62 - 0.1 * choices])
    assert last.commit.tolist() == [[True, True]]  # 0.571 is above 0.545


def test_each_column_by_hand() -> None:
    scheduler = DynamicThreshold(0.9, fall=0.1, rise=0.2, per_column=True)
    still = [0.88, 0.08]
    first, second = follow(scheduler, [of([FIRST, still]), of([THEN, still])])
    assert threshold(first)[:2] == [0.9, 0.9]
    one = 0.9 - 0.1 * (1 - 3 / 7) + 0.2 * (1 - cosine(FIRST, THEN))
    assert threshold(second)[:2] == pytest.approx([one, 0.9 - 0.1 * 0.92])
    assert second.commit.tolist() == [[False, True]]


def test_what_a_pass_did_not_compute_is_compared_with_what_it_last_was() -> None:
    scheduler = DynamicThreshold(1.0, fall=0.1, rise=0.2)
    other = [0.5, 0.3]
    steps = [of([FIRST, other]), of([FIRST, other]), of([THEN, other])]
    known = [[False, True], [True, True], [True, True]]
    _, second, third = follow(scheduler, steps, known)
    # The first column is new in the second pass: the other one alone counts.
    assert threshold(second) == pytest.approx([1 - 0.1 * 0.7])
    moved, choices = (1 - cosine(FIRST, THEN)) / 2, (1 - 3 / 7 + 0.7) / 2
    assert threshold(third) == pytest.approx([1 - 0.1 * 0.7 - 0.1 * choices + 0.2 * moved])
    hidden = [[True, True], [False, True], [True, True]]
    *_, last = follow(scheduler, [steps[0], steps[0], steps[2]], hidden)
    assert threshold(last) == pytest.approx([1 - 0.1 * 0.7 - 0.1 * choices + 0.2 * moved])


@torch.inference_mode()
def published(
    model: Any, prompt: list[int], slots: int, block: int, scheduler: DynamicThreshold
) -> tuple[list[int], list[int], int]:
    """One row as the authors' loop goes: its tokens, when each was committed, and the passes."""
    mask, start = model.spec.mask_token_id, len(prompt)
    row = torch.tensor([*prompt, *[mask] * slots])
    when, passes, last = [-1] * slots, 0, None
    least = torch.full((slots,), scheduler.threshold, dtype=torch.float64)
    for end in range(block, slots + 1, block):
        while mask in row[start + end - block : start + end]:
            logits = model.network(row[None])[0, start:]
            now = logits.softmax(-1)
            open_ = [at for at in range(end) if row[start + at] == mask]
            if last is not None:
                sure = 1 - now.sort(dim=-1).values[:, -2]
                shift = 1 - torch.cosine_similarity(now, last, dim=-1)
                if not scheduler.per_column:
                    sure, shift = sure[open_].mean(), shift[open_].mean()
                least = least - scheduler.fall * sure + scheduler.rise * shift
            last = now
            token = logits.index_fill(1, torch.tensor([mask]), -torch.inf).argmax(-1)
            sure = now.gather(1, token[:, None])[:, 0]
            best = max(open_, key=lambda at: float(sure[at]))
            for at in [at for at in open_ if sure[at] >= least[at] or at == best]:
                row[start + at], when[at] = token[at], passes
            passes += 1
    return row.tolist(), when, passes


SETTINGS = [
    DynamicThreshold(0.6, fall=0.02, rise=0.15),
    DynamicThreshold(0.5, fall=0.01, rise=0.3),
    DynamicThreshold(0.7, fall=0.05, rise=0.15, per_column=True),
    DynamicThreshold(),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("scheduler", "block", "rows", "seed"), crossed(SETTINGS, (8, 16, 32), (1, 3, 6), (1, 2, 3))
)
def test_runs_are_the_published_loops(
    scheduler: DynamicThreshold, block: int, rows: int, seed: int
) -> None:
    model, prompts, slots = golden_model("llada_gqa"), random_prompts(rows, seed=seed), 32
    options: dict[str, Any] = {"max_new_tokens": slots, "block_length": block, "at_eos": "ignore"}
    out = dllm.generate(model, prompts, scheduler=scheduler, **options)
    for row, prompt in enumerate(prompts):
        tokens, when, passes = published(model, prompt, slots, block, scheduler)
        assert list(out.sequences[row]) == tokens
        assert out.trace.commit_step[row, len(prompt) :][:slots].tolist() == when
        assert out.metrics.rows[row].forwards == passes


@pytest.mark.parametrize("each", [False, True])
def test_a_threshold_that_stands_is_that_of_the_plain_one(each: bool) -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(4)
    options: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8, "at_eos": "ignore"}
    plain = dllm.generate(model, prompts, scheduler="threshold:0.6", **options)
    still = DynamicThreshold(0.6, fall=0, rise=0, per_column=each)
    assert dllm.generate(model, prompts, scheduler=still, **options).sequences == plain.sequences
    falling = DynamicThreshold(0.6, fall=0.05, rise=0, per_column=each)
    fewer = dllm.generate(model, prompts, scheduler=falling, **options).metrics
    assert fewer.num_forwards < plain.metrics.num_forwards


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "dkv:3"])
@pytest.mark.parametrize("scheduler", ["dynamic_dllm:0.6", "dynamic_dllm:0.6,per_column=true"])
def test_rows_carry_their_own_threshold(scheduler: str, cache: str) -> None:
    model, prompts = golden_model("dream_gqa"), random_prompts(4, seed=1)
    options: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "at_eos": "ignore"}
    options |= {"scheduler": scheduler, "cache": cache}
    together = dllm.generate(model, prompts, **options)
    for row, prompt in enumerate(prompts):
        alone = dllm.generate(model, [prompt], **options)
        assert together.sequences[row] == alone.sequences[0]
        assert together.metrics.rows[row].forwards == alone.metrics.rows[0].forwards


def test_wrong_options_are_explained() -> None:
    with pytest.raises(ValueError, match=r"threshold=1\.5 must be in \[0, 1\]"):
        dllm.schedulers.registry.create("dynamic_dllm:1.5")
    with pytest.raises(ValueError, match=r"fall=-0\.1 must be 0 or more"):
        dllm.schedulers.registry.create("dynamic_dllm:fall=-0.1")
