"""The toll: it changes no token, and says what a constraint cost, nat by nat."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import pytest
import torch

import dllm
from dllm.constraints import Choice, Constraint, Regex
from dllm.decoding.languages.toll import Toll
from dllm.generate import Stream
from dllm.settings import resolve

PROMPTS = ["zoe has 62 eggs. zoe sells 17. how many eggs does zoe have?", "sort: 3, 1, 2."]
STEPS = Regex(r"[0-9]{1,3}[-+][0-9]{1,3}=[0-9]{1,3}(; #### [0-9]{1,3})?")
LISTED = Regex(r"[0-9]( [0-9])*")


def run(model: Any, prompts: Any, toll: Toll | None, **given: Any) -> Stream:
    settings = resolve(model.defaults, None, {"max_new_tokens": 12, **given})
    running = Stream(model, prompts, settings, toll=toll)
    for _ in running:
        pass
    return running


def first_logits(model: Any, prompt: str, slots: int) -> torch.Tensor:
    """The logits of the slots in the first pass, of tokens that may be proposed."""
    seen: list[torch.Tensor] = []

    def look(record: Any) -> None:
        seen.append(record.logits[0, :slots].clone())

    settings = resolve(model.defaults, None, {"max_new_tokens": slots})
    next(iter(Stream(model, prompt, settings, observer=look)))
    mask = torch.arange(seen[0].shape[1]) == model.spec.mask_token_id
    return seen[0].masked_fill(mask, -torch.inf)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"scheduler": "fixed_quota", "cache": "dual", "block_length": 4},
        {"scheduler": "wino", "block_length": 6},
        {"joint": "map", "cache": "prefix", "block_length": 6},
        {"temperature": 0.8, "seed": 3},
        {"batch_size": 1},
        {"verifier": "ssd:2", "scheduler": "fixed_quota"},
    ],
)
def test_behind_the_toll_tokens_are_the_same(tiny: dllm.HostedModel, given: Any) -> None:
    given = {"constraint": [STEPS, LISTED], **given}
    toll = Toll()
    plain, tolled = run(tiny, PROMPTS, None, **given), run(tiny, PROMPTS, toll, **given)
    assert plain.output.sequences == tolled.output.sequences
    assert [row.forced for row in plain.output.metrics.rows] == [
        row.forced for row in tolled.output.metrics.rows
    ]
    assert all(toll.lost(prompt) is not None for prompt in (0, 1))


@pytest.mark.parametrize("constraint", [Regex("[0-9]"), Regex("[a-z]"), Choice(["-", "then"])])
def test_a_token_loses_what_it_is_behind_the_models_own(
    tiny: dllm.HostedModel, constraint: Constraint
) -> None:
    toll = Toll()
    output = run(tiny, PROMPTS[0], toll, constraint=constraint, max_new_tokens=1).output
    logits = first_logits(tiny, PROMPTS[0], 1)[0].log_softmax(0)
    assert output.sequences[0][-1] != int(logits.argmax()) or constraint == Regex("[0-9]")
    lost = float(logits.max() - logits[output.sequences[0][-1]])
    assert toll.lost(0) == pytest.approx(lost, abs=1e-4)
    assert (lost == 0) == (constraint == Regex("[0-9]"))  # it would have written a digit


def test_of_the_most_probable_text_every_token_counts(tiny: dllm.HostedModel) -> None:
    toll = Toll()
    given = {"scheduler": "fixed_quota", "steps": 1, "max_new_tokens": 2, "joint": "map"}
    output = run(tiny, PROMPTS[0], toll, constraint=Choice(["+-", "-+", "=="]), **given).output
    logits = first_logits(tiny, PROMPTS[0], 2)
    tokens = torch.tensor(output.sequences[0][-2:])
    lost = logits.amax(1) - logits.gather(1, tokens[:, None])[:, 0]
    assert output.metrics.rows[0].forwards == 1
    assert toll.lost(0) == pytest.approx(float(lost.sum()), abs=1e-4)


@pytest.mark.parametrize("scheduler", ["fixed_quota", "threshold:0.9", "wino"])
def test_where_any_text_goes_nothing_is_lost(tiny: dllm.HostedModel, scheduler: str) -> None:
    toll = Toll()
    given = {"scheduler": scheduler, "max_new_tokens": 32}
    output = run(tiny, PROMPTS, toll, constraint=[Regex("(?s).*"), None], **given).output
    assert output.texts == run(tiny, PROMPTS, None, **given).output.texts
    assert toll.lost(0) == pytest.approx(0, abs=1e-6)
    assert toll.lost(1) is None


def test_tokens_that_are_never_proposed_are_no_loss(tiny: dllm.HostedModel) -> None:
    toll, logits = Toll(), first_logits(tiny, PROMPTS[0], 1)[0]
    (own, second) = logits.topk(2).indices.tolist()
    given = {"constraint": Regex("[a-z]"), "max_new_tokens": 1, "forbidden_token_ids": (own,)}
    output = run(tiny, PROMPTS[0], toll, **given).output
    lost = float(logits[second] - logits[output.sequences[0][-1]])
    assert toll.lost(0) == pytest.approx(lost, abs=1e-4)
    assert lost > 0


def test_a_verifiers_drafts_cost_no_nats(tiny: dllm.HostedModel) -> None:
    plain, verified = Toll(), Toll()
    given = {"constraint": [STEPS, LISTED], "scheduler": "fixed_quota"}
    run(tiny, PROMPTS, plain, **given)
    run(tiny, PROMPTS, verified, verifier="ssd:3", **given)
    for prompt in (0, 1):
        assert verified.lost(prompt) == pytest.approx(plain.lost(prompt), abs=1e-3)
    assert _lost(plain, 1) > 0


def test_the_clock_counts_what_constraints_took(tiny: dllm.HostedModel) -> None:
    toll, start = Toll(), perf_counter()
    run(tiny, PROMPTS, toll, constraint=STEPS)
    assert toll.seconds is not None
    assert 0 < toll.seconds < perf_counter() - start
    nothing = Toll()
    run(tiny, PROMPTS, nothing)
    assert nothing.seconds is None
    assert nothing.lost(0) is None


def _lost(toll: Toll, prompt: int = 0) -> float:
    found = toll.lost(prompt)
    assert found is not None
    return found
