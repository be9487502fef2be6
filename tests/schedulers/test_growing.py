"""rho-EOS and DAEDAL: their loops written on lists, which a run must follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import dllm
from dllm.schedulers import registry
from dllm.schedulers.gap import confidence_in_end
from dllm.state.candidates import Candidates
from tests.support.laws import transfers_of
from tests.support.models import family_model, golden_model, random_prompts
from tests.support.views import layout_of, view_of

END, MASK = 19, 126
SPAN, MOST = 8, 48
Move = str


@pytest.fixture(scope="module")
def model() -> dllm.HostedModel:
    return golden_model("llada_gqa")


def read(model: Any, text: list[int]) -> tuple[list[int], list[float], list[float]]:
    """Returns the token of each column, its probability, and that of the end."""
    logits = model.network(torch.tensor([text]))[0]
    logits[:, MASK] = -torch.inf
    chance = logits.softmax(-1)
    return chance.argmax(-1).tolist(), chance.amax(-1).tolist(), chance[:, END].tolist()


def fill(text: list[int], at: int, tokens: list[int], sure: list[float], than: float) -> list[int]:
    """Commits what the authors' loops do in the span from column `at` on; returns its columns."""
    open_ = [c for c in range(at, min(at + SPAN, len(text))) if text[c] == MASK]
    chosen = [c for c in open_ if sure[c] > than]
    if not chosen and open_:
        chosen = [max(open_, key=lambda c: (sure[c], -c))]
    for column in chosen:
        text[column] = tokens[column]
    return chosen


def advance(text: list[int], at: int) -> int:
    while at < len(text) and MASK not in text[at : at + SPAN]:
        at = min(at + SPAN, len(text))
    return at


def confidence(start: int, tokens: list[int], end: list[float]) -> float:
    found = [end[c] for c in range(len(tokens) - 1, start - 1, -1) if tokens[c] == END]
    return sum(found[:32]) / 32


def rho_eos(model: Any, prompt: list[int], **options: Any) -> tuple[list[int], int, set[Move]]:
    """The text of one row, its forwards and how its length moved."""
    given: dict[str, Any] = {
        "begin": 16,
        "threshold": 0.3,
        "low": 0.4,
        "high": 0.6,
        "step": 2,
        "pace": "exp",
    }
    given |= {"signal": "density", "changes": 64, **options}
    start, moves = len(prompt), set()
    text, at, full, forwards = [*prompt, *[MASK] * given["begin"]], start, False, 0
    while MASK in text:
        full = full or len(text) - start >= MOST
        tokens, sure, end = read(model, text)
        masks = [c for c, token in enumerate(text) if token == MASK]
        share = np.float32(sum(tokens[c] == END for c in masks)) / np.float32(len(masks))
        if given["signal"] == "confidence":
            share = np.float32(confidence(start, tokens, end))
        fill(text, at, tokens, sure, given["threshold"])
        at = advance(text, at)
        forwards += 1
        if full or forwards > given["changes"]:
            continue
        count = columns(share, given)
        if share < given["low"]:
            count = min(count, MOST - (len(text) - start))
            ended = [c for c in range(start, len(text)) if text[c] == END]
            before = ended[0] if ended else len(text)
            text[before:before] = [MASK] * count
            at = min(at, before) if count else at
            moves.add("middle" if ended and count else "grows")
        elif share > given["high"]:
            del text[max(len(text) - count, start) :]
            at = min(at, len(text))
            moves.add("shrinks")
    return text, forwards, moves


def columns(share: np.float32, given: dict[str, Any]) -> int:
    far = max(np.float32(given["low"]) - share, share - np.float32(given["high"]))
    tenths = max(math.ceil(np.float32((far + np.float32(1e-12)) / np.float32(0.1))), 1)
    pace: int = {"exp": 2 ** (tenths - 1), "linear": tenths, "const": 1}[given["pace"]]
    return min(pace, 8) * int(given["step"])


def daedal(model: Any, prompt: list[int], **options: Any) -> tuple[list[int], int, set[Move]]:
    """The text of one row, its forwards and how its length moved."""
    given: dict[str, Any] = {
        "begin": 8,
        "threshold": 0.3,
        "step": 4,
        "enough": 0.1,
        "spare": 6,
        "sure": 0.9,
    }
    given |= {"hesitation": 0.1, **options}
    start, moves, forwards = len(prompt), set(), 0
    text = [*prompt, *[MASK] * given["begin"]]
    short = True
    while short:
        tokens, _, end = read(model, text)
        forwards += 1
        free = MOST - (len(text) - start)
        short = confidence(start, tokens, end) < given["enough"] and free > 0
        text += [MASK] * min(given["step"] if short else given["spare"], free)
        moves.add("first" if short else "found")
    at = start
    while MASK in text:
        tokens, sure, end = read(model, text)
        forwards += 1
        open_ = [c for c in range(at, min(at + SPAN, len(text))) if text[c] == MASK]
        least = min(open_, key=lambda c: (sure[c], c))
        chosen = fill(text, at, tokens, sure, given["threshold"])
        unsure = sure[least] < given["hesitation"] and least not in chosen
        free = MOST - (len(text) - start)
        if unsure and confidence(start, tokens, end) < given["sure"] and free:
            text[least : least + 1] = [MASK] * (1 + min(given["step"] - 1, free))
            moves.add("opens")
        at = advance(text, at)
    return text, forwards, moves


Loop = Callable[..., tuple[list[int], int, set[Move]]]
RHO = {"name": "rho_eos", "begin": 16, "threshold": 0.3, "step": 2}
DAEDAL = {"name": "daedal", "begin": 8, "threshold": 0.3, "step": 4, "enough": 0.1, "spare": 6}
CASES: list[tuple[Loop, dict[str, Any], dict[str, Any]]] = [
    (rho_eos, RHO, {}),
    (rho_eos, RHO, {"low": 0.02, "high": 0.03}),
    (rho_eos, RHO, {"low": 0.05, "high": 0.2, "pace": "linear"}),
    (rho_eos, RHO, {"low": 0.05, "high": 0.1, "pace": "const", "changes": 5}),
    (rho_eos, RHO, {"low": 0.002, "high": 0.01, "signal": "confidence"}),
    (daedal, DAEDAL, {}),
    (daedal, DAEDAL, {"enough": 0.004, "hesitation": 0.2}),
    (daedal, DAEDAL, {"enough": 0.0, "spare": 0, "hesitation": 0.3, "threshold": 0.5}),
]


def run(model: Any, prompts: Any, scheduler: Any, **options: Any) -> dllm.GenerationOutput:
    given = {"max_new_tokens": MOST, "block_length": SPAN, "at_eos": "ignore", **options}
    return dllm.generate(model, prompts, scheduler=scheduler, eos_token_id=END, **given)


@pytest.mark.parametrize(("loop", "scheduler", "options"), CASES)
def test_a_run_is_the_authors_loop(model: Any, loop: Any, scheduler: Any, options: Any) -> None:
    prompts = random_prompts(6, seed=7)
    out = run(model, prompts, {**scheduler, **options})
    for prompt, sequence, metrics in zip(prompts, out.sequences, out.metrics.rows, strict=True):
        text, forwards, _ = loop(model, prompt, **options)
        assert list(sequence) == text
        assert metrics.forwards == forwards


def test_the_cases_move_in_every_way(model: Any) -> None:
    moves = set()
    for loop, _, options in CASES:
        for prompt in random_prompts(6, seed=7):
            moves |= loop(model, prompt, **options)[2]
    assert moves == {"grows", "middle", "shrinks", "first", "found", "opens"}


@pytest.mark.parametrize("scheduler", [RHO, DAEDAL])
def test_rows_that_wait_and_draws_are_those_of_a_row_alone(model: Any, scheduler: Any) -> None:
    prompts, options = random_prompts(5, seed=20), {"temperature": 0.8, "top_p": 0.9}
    together = run(model, prompts, scheduler, batch_size=2, seed=[1, 2, 3, 4, 5], **options)
    for place, prompt in enumerate(prompts):
        alone = run(model, [prompt], scheduler, seed=[place + 1], **options)
        assert together.sequences[place] == alone.sequences[0]
        assert together.metrics.rows[place] == alone.metrics.rows[0]


@pytest.mark.parametrize("scheduler", [RHO, DAEDAL])
def test_one_host_transfer_a_step(
    model: Any, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"max_new_tokens": MOST, "block_length": SPAN, "seed": 0}
    options |= {"eos_token_id": END, "scheduler": scheduler}
    stream = dllm.stream(model, random_prompts(4), **options)
    events = iter(stream)
    next(events)  # tables are built once
    assert set(transfers_of(events, monkeypatch)) == {1}


@pytest.mark.parametrize("scheduler", [RHO, DAEDAL])
def test_a_gap_in_a_text_grows_too(model: Any, scheduler: Any) -> None:
    rows = [[1, 2, 3, *[MASK] * 20, 4, 5], [7, *[MASK] * 30, 8]]
    out = run(model, rows, scheduler, infill=True)
    for row, sequence in zip(rows, out.sequences, strict=True):
        behind = len(row) - row.index(MASK) - row.count(MASK)
        assert list(sequence[: row.index(MASK)]) == row[: row.index(MASK)]
        assert list(sequence[-behind:]) == row[-behind:]
        assert MASK not in sequence
        assert len(sequence) <= len(row)


def test_a_bound_below_the_first_length_is_all_there_is(model: Any) -> None:
    out = run(model, [[1, 2, 3]], {**DAEDAL, "begin": 64}, max_new_tokens=5)
    assert len(out.sequences[0]) == 3 + 5
    assert out.metrics.rows[0].finish_reason == "length"


@pytest.mark.parametrize("scheduler", ["rho_eos", "daedal"])
def test_what_does_not_go_together_is_refused(scheduler: str) -> None:
    with pytest.raises(ValueError, match="cache 'dual' goes by columns"):
        run(golden_model("llada_gqa"), [[1]], scheduler, cache="dual")
    with pytest.raises(ValueError, match="attention 'block_causal' of this model"):
        dllm.generate(family_model("sdar"), [[1]], scheduler=scheduler)
    with pytest.raises(ValueError, match=r"low=0.7 must not be above high=0.6"):
        registry.create("rho_eos:low=0.7")


def test_only_the_last_32_ends_count() -> None:
    width, slots = 50, 40
    logits = torch.full((1, width, 128), -10.0, dtype=torch.float64)
    chance = torch.linspace(0.6, 0.9, width, dtype=torch.float64)
    logits[..., 19], logits[..., 3] = chance.log(), (1 - chance).log()
    masked = torch.ones(1, width, dtype=torch.bool)
    size = torch.tensor([slots])
    layout = replace(layout_of(1, width), eos_token_ids=(END,), mask_token_id=MASK)
    view = view_of(masked, gap=size, room=size + 10, layout=layout)
    found = confidence_in_end(Candidates(logits, logits.argmax(-1)), view)
    given = logits.softmax(-1)[0, slots - 32 : slots, END].sum() / 32
    assert found.item() == pytest.approx(given.item(), rel=1e-12)
