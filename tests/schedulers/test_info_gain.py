"""Info-Gain: a choice by hand, and whole runs beside the published loop written down."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import dllm
from dllm.schedulers import registry
from dllm.schedulers.info_gain import InfoGain
from dllm.state.noise import CounterNoise
from tests.support.models import golden_model, random_prompts
from tests.support.views import candidates_of, view_of

SLOTS, BLOCK, SEED = 24, 8, 7


def entropy(sure: float) -> float:
    """Returns the entropy of three tokens of which the first has the given probability."""
    chance = torch.tensor([sure, (1 - sure) / 2, (1 - sure) / 2], dtype=torch.float64)
    return float(-(chance * chance.log()).sum())


def test_a_choice_by_hand() -> None:
    masked = torch.tensor([[True, True, True, False]])
    scheduler = InfoGain(candidates=5, position_temperature=100)  # noise alone
    before, view = candidates_of([[0.5, 0.7, 0.6, 0.9]]), view_of(masked)
    decision = scheduler.decide(before, view)
    assert not decision.commit.any()
    variants, state = decision.variants, decision.state
    assert variants is not None
    assert state is not None
    columns = variants.columns[0].tolist()
    assert columns[0] == 1  # the most confident one
    assert set(columns) <= {0, 1, 2}
    expected = [column not in columns[:number] for number, column in enumerate(columns)]
    assert variants.valid[0].tolist() == expected
    assert not all(expected)  # five draws of three columns
    costs = [entropy([0.5, 0.7, 0.6][column]) for column in columns]
    torch.testing.assert_close(state["cost"][0], torch.tensor(costs, dtype=torch.float64))
    # What each variant leaves: two masks, whose mean entropy counts.
    left = [[0.4, 0.4, 0.4, 0.9], [0.5, 0.7, 0.8, 0.9], [0.9, 0.4, 0.6, 0.9], *[[0.5] * 4] * 2]
    seen = view_of(masked, state=state).of_variants(variants.columns)
    score = scheduler.appraise(candidates_of(left), seen, variants)[0].tolist()
    for value, cost, row, column in zip(score, costs, left, columns, strict=True):
        rest = [entropy(row[at]) for at in (0, 1, 2) if at != column]
        assert value == pytest.approx(-cost - sum(rest) / 2)
    other = InfoGain(candidates=5, objective="lookum").appraise(candidates_of(left), seen, variants)
    assert other[0].tolist() == pytest.approx([s + c for s, c in zip(score, costs, strict=True)])


def test_a_sure_block_is_filled_at_once() -> None:
    masked, sure = torch.tensor([[True, True, False]]), candidates_of([[0.8, 0.9, 0.1]])
    decision = InfoGain().decide(sure, view_of(masked))
    assert decision.commit.tolist() == [[True, True, False]]
    assert decision.variants is not None
    assert not decision.variants.needed.any()
    assert not InfoGain(threshold=0).decide(sure, view_of(masked)).commit.any()
    lower = candidates_of([[0.79, 0.9, 0.1]])
    assert not InfoGain().decide(lower, view_of(masked)).commit.any()


def read(model: Any, tokens: Any) -> Any:
    """Returns the logits of a pass over canvases, in which no mask is proposed."""
    logits = model.network(tokens).clone()
    logits[..., model.spec.mask_token_id] = -torch.inf
    return logits


def nats(logits: Any) -> Any:
    chance = logits.softmax(-1)
    return -(chance * chance.clamp(min=1e-12).log()).sum(-1)


def compared(model: Any, row: Any, logits: Any, chosen: list[int], objective: str) -> Any:
    """Returns the row with the best of the chosen columns filled, and its logits."""
    tried, token = row.repeat(len(chosen), 1), logits.argmax(-1)
    for number, at in enumerate(chosen):
        tried[number, at] = token[at]
    after, left = read(model, tried), tried == model.spec.mask_token_id
    rest = torch.where(left, nats(after), 0).sum(-1) / (left.sum(-1) + 1e-10)
    cost = nats(logits)[chosen] if objective == "info_gain" else 0
    winner = int((-cost - rest).argmax())
    return tried[winner], after[winner]


def published(model: Any, prompt: list[int], scheduler: InfoGain, seed: int) -> Any:
    """One row decoded as the authors' loop goes: its tokens, its passes and their rows.

    Without the pass with which they begin a block whose logits they have.
    """
    mask, start, count = model.spec.mask_token_id, len(prompt), scheduler.candidates
    row, noise = torch.tensor([*prompt, *[mask] * SLOTS]), CounterNoise(torch.tensor([seed]))
    temperature, logits, rows = scheduler.position_temperature, None, list[int]()
    for begin in range(start, start + SLOTS, BLOCK):
        while mask in row[begin : begin + BLOCK]:
            if logits is None:
                logits, rows = read(model, row[None])[0], [*rows, 1]
            sure, token = logits.softmax(-1).max(-1)
            valid = [at for at in range(begin, begin + BLOCK) if row[at] == mask]
            if scheduler.threshold > 0 and all(sure[at] >= scheduler.threshold for at in valid):
                row[valid], logits = token[valid], None
                continue
            chosen = [max(valid, key=lambda at: float(sure[at]))]
            if len(valid) == 1 or count == 1 or temperature == 0:
                row[chosen], logits = token[chosen], None
                continue
            for number in range(1, count):
                step = torch.tensor([(len(rows) - 1) * count + number])
                uniform = noise.columns(torch.arange(len(row))[None], step, row[None] == mask)[0]
                score = sure / temperature - (-(uniform + 1e-10).log() + 1e-10).log()
                chosen.append(max(valid, key=lambda at: float(score[at])))
            chosen, rows = list(dict.fromkeys(chosen)), [*rows, count]
            row, logits = compared(model, row, logits, chosen, scheduler.objective)
    return row.tolist(), len(rows), sum(rows)


@pytest.mark.parametrize(
    "scheduler",
    [
        InfoGain(candidates=3, threshold=0.3),
        InfoGain(candidates=5, position_temperature=1, threshold=0, objective="lookum"),
        InfoGain(candidates=1, threshold=0.3),
        InfoGain(position_temperature=0, threshold=0),
    ],
)
def test_runs_are_the_published_loops(scheduler: InfoGain) -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(5, seed=3)
    seeds = [SEED + number for number in range(len(prompts))]
    out = dllm.generate(
        model,
        prompts,
        scheduler=scheduler,
        max_new_tokens=SLOTS,
        block_length=BLOCK,
        at_eos="ignore",
        seed=seeds,
    )
    for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        tokens, passes, rows = published(model, prompt, scheduler, seed)
        assert list(out.sequences[number]) == tokens
        counted = out.metrics.rows[number]
        assert (counted.forwards, counted.row_forwards) == (passes, rows)


def test_one_candidate_is_the_most_confident_column() -> None:
    model, prompts = golden_model("dream_gqa"), random_prompts(4)
    given: dict[str, Any] = {"max_new_tokens": SLOTS, "block_length": BLOCK}
    plain = dllm.generate(model, prompts, scheduler="fixed_quota", **given).sequences
    alone = "info_gain:1,threshold=0"
    assert dllm.generate(model, prompts, scheduler=alone, **given).sequences == plain


def test_draws_of_different_steps_and_candidates_are_their_own() -> None:
    scheduler = registry.create("info_gain:4,position_temperature=1e9,threshold=0")
    masked, sure = torch.ones(1, 64, dtype=torch.bool), candidates_of([[0.5] * 64])
    drawn = []
    for step in range(3):
        variants = scheduler.decide(sure, view_of(masked, steps_done=step)).variants
        assert variants is not None
        drawn += variants.columns[0, 1:].tolist()
    assert len(set(drawn)) >= 7, "nine draws of 64 columns are seldom three times the same"
    assert all(a != b for a, b in itertools.pairwise(drawn))
