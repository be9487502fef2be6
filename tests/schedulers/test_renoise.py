"""Renoising: recorded steps of two implementations, when a block ends, what a row draws."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import dllm
from dllm.schedulers import Decision, Setup, View
from dllm.schedulers.renoise import NOISE, Renoise, _draw
from dllm.state.candidates import Candidates
from dllm.state.noise import CounterNoise
from dllm.state.window import Layout
from tests.support import GOLDEN
from tests.support.models import golden_model
from tests.support.views import SETUP, layout_of, view_of

CASES = json.loads((GOLDEN / "cases" / "renoise_steps.json").read_text())["cases"]
LOGITS = load_file(GOLDEN / "cases" / "renoise_logits.safetensors")
STEPS = [case for case in CASES if case["method"] == "renoise_step"]
BLOCKS = [case for case in CASES if case["method"] == "renoise_block"]


def recorded(key: str) -> Candidates:
    logits = LOGITS[key].float()[None]
    return Candidates(logits, logits.argmax(-1))


def of_width(width: int, rows: int = 1, vocabulary: int = 128) -> tuple[Layout, Setup]:
    layout = replace(layout_of(rows, width), mask_token_id=vocabulary)
    return layout, replace(SETUP, num_rows=rows, width=width)


def looking(scheduler: Renoise, state: Any, step: int, width: int, rows: int = 1) -> View:
    masked = torch.ones(rows, width, dtype=torch.bool)
    tokens = torch.full((rows, width), 128)
    given = {"layout": of_width(width, rows)[0], "tokens": tokens, "state": state}
    return view_of(masked, block_step=step, steps_done=step, **given)


@pytest.mark.parametrize("case", STEPS, ids=lambda case: str(case["id"]))
def test_recorded_steps_accept_the_same_columns(case: dict[str, Any]) -> None:
    args, candidates = case["args"], recorded(case["logits"])
    scheduler = Renoise(
        args["num_inference_steps"], args["entropy_bound"], args["t_max"], args["t_min"]
    )
    width = candidates.token.shape[1]
    state = scheduler.start(of_width(width)[1])
    decision = scheduler.decide(candidates, looking(scheduler, state, args["timestep"], width))
    assert decision.state is not None
    accepted = decision.state["accepted"][0]
    assert (accepted != NOISE).int().tolist() == case["accepted"]
    assert not decision.commit.any()
    heat = scheduler.temperature(torch.tensor([args["timestep"]]))
    chance = (candidates.logits / heat).softmax(-1)[0]
    drawn = chance.gather(-1, torch.tensor(case["sampled_tokens"])[:, None])[:, 0]
    torch.testing.assert_close(drawn, torch.tensor(case["sampled_probs"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: str(case["id"]))
def test_a_recorded_block_ends_with_the_same_tokens_in_the_same_forward(
    case: dict[str, Any],
) -> None:
    args, width = case["args"], case["block_length"]
    scheduler = Renoise(
        args["max_denoising_steps"],
        args["sampler_config"]["entropy_bound"],
        **args["stopping_config"],
    )
    state = scheduler.start(of_width(width)[1])
    for number, step in enumerate(case["steps"]):
        candidates = recorded(step["logits"])
        decision = scheduler.decide(candidates, looking(scheduler, state, number, width))
        assert candidates.token[0].tolist() == step["argmax"]
        assert bool(decision.commit.all()) == bool(decision.commit.any()) == step["done"]
        assert decision.state is not None
        state = decision.state
    assert candidates.token[0].tolist() == case["final"]


def sure_of(tokens: list[int], width: int = 4) -> Candidates:
    """Candidates (1, W) that are as good as certain."""
    logits = torch.zeros(1, width, 129)
    logits[0, torch.arange(width), torch.tensor(tokens)] = 60.0
    logits[..., -1] = -torch.inf
    return Candidates(logits, torch.tensor([tokens]))


def run(scheduler: Renoise, answers: list[list[int]]) -> list[Decision]:
    """Returns the decisions on one block, forward after forward."""
    state, found = scheduler.start(of_width(4)[1]), []
    for step, tokens in enumerate(answers):
        found.append(scheduler.decide(sure_of(tokens), looking(scheduler, state, step, 4)))
        assert found[-1].state is not None
        state = found[-1].state
    return found


def ends(decisions: list[Decision]) -> list[bool]:
    assert all(one.commit.all() == one.commit.any() for one in decisions)
    return [bool(one.commit.all()) for one in decisions]


def test_a_block_ends_when_it_is_stable_for_long_enough() -> None:
    same, other = [5, 6, 7, 8], [5, 6, 7, 9]
    answers = [same, other, other, same, same, same]
    assert ends(run(Renoise(steps=9), answers)) == [False, False, True, False, True, True]
    longer = Renoise(steps=9, stability_threshold=2)
    assert ends(run(longer, answers)) == [False] * 5 + [True]
    assert ends(run(Renoise(steps=9, stability_threshold=0), answers)) == [True] * 6
    assert ends(run(Renoise(steps=6, confidence_threshold=0), answers)) == [False] * 5 + [True]


def test_what_was_accepted_is_fed_and_the_rest_is_noise() -> None:
    scheduler, (_, setup) = Renoise(steps=9), of_width(4)
    state = scheduler.start(setup)
    accepted = {**state, "accepted": torch.tensor([[5, NOISE, 7, NOISE]])}
    first, later = (looking(scheduler, accepted, step, 4) for step in (0, 1))
    fed = scheduler.fed(later)
    assert fed[0, [0, 2]].tolist() == [5, 7]
    assert not torch.equal(fed, scheduler.fed(looking(scheduler, accepted, 2, 4)))
    # A block that begins has nothing of the one before.
    assert scheduler.fed(first).tolist() == scheduler.fed(looking(scheduler, state, 0, 4)).tolist()


def test_noise_is_even_over_the_vocabulary_and_never_the_flag() -> None:
    scheduler, rows, width = Renoise(), 64, 256
    view = looking(scheduler, {}, 0, width, rows)
    view = replace(view, noise=CounterNoise(torch.arange(rows)))
    counts = scheduler.fed(view).flatten().bincount(minlength=128)
    assert len(counts) == 128
    expected = rows * width / 128  # 128, with a deviation of 11.3
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    rows, width = 64, 256
    view = looking(Renoise(), {}, 0, width, rows)
    view = replace(view, noise=CounterNoise(torch.arange(rows)))
    chance = torch.tensor([0.5, 0.0, 0.3, 0.2 - 1e-3, 1e-3, 0.0]).expand(rows, width, 6)
    found = _draw(chance, view).flatten().bincount(minlength=6) / (rows * width)
    deviation = (chance[0, 0] * (1 - chance[0, 0]) / (rows * width)).sqrt()
    assert ((found - chance[0, 0]).abs() <= 5 * deviation).all()


def test_masked_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'renoise' feeds random tokens.*take 'entropy_bound'"):
        dllm.generate(golden_model("llada_gqa"), [[1]], scheduler="renoise")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_max": 0.3}, r"t_max=0.3 .* at least the t_min=0.4"),
        ({"steps": 0}, "steps=0 must be"),
        ({"entropy_bound": -1.0}, "entropy_bound=-1.0 must be"),
        ({"t_min": 0.0}, "t_min=0.0 must be"),
    ],
)
def test_options_that_no_sampler_can_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Renoise(**options)


def test_a_row_alone_decides_as_in_a_batch() -> None:
    torch.manual_seed(0)
    scheduler, (_, setup) = Renoise(entropy_bound=4.0), of_width(6, rows=3)
    logits: Tensor = 4 * torch.randn(3, 6, 129)
    view = looking(scheduler, scheduler.start(setup), 1, 6, rows=3)
    state = scheduler.decide(Candidates(logits, logits.argmax(-1)), view).state
    assert state is not None
    for row in range(3):
        one = looking(scheduler, scheduler.start(of_width(6)[1]), 1, 6)
        one = replace(one, noise=CounterNoise(torch.tensor([row])))
        alone = scheduler.decide(
            Candidates(logits[row : row + 1], logits[row : row + 1].argmax(-1)), one
        ).state
        assert alone is not None
        assert torch.equal(alone["accepted"][0], state["accepted"][row])
    assert (state["accepted"] != NOISE).any()
