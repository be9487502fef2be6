"""DreamOn: its loop written on lists, which a run must follow; what it cannot go with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import dllm
from tests.support.laws import transfers_of
from tests.support.models import family_model, golden_model, random_prompts

EXPAND, END = 5, 19  # tokens that the random model is often sure of


def by_the_authors_loop(
    model: dllm.HostedModel, ids: list[int], algorithm: str, room: int, expansions: int
) -> tuple[list[int], int, set[str]]:
    """Returns a text whose gap was filled, the forwards, and which of the two moves there were.

    As eval/generator.py of DreamLM/DreamOn does at temperature 0, without its padding.
    """
    mask, moves = model.spec.mask_token_id, set()
    text, forwards, cap = list(ids), 0, max(room - ids.count(mask), 0) + len(ids)
    while mask in text:
        logits = model.network(torch.tensor([text]))[0]
        logits = torch.cat([logits[:1], logits[:-1]])  # shifted
        if len(text) == cap or expansions == 0:
            logits[:, EXPAND] = -torch.inf
        open_ = [column for column, token in enumerate(text) if token == mask]
        chance = logits[open_].softmax(-1)
        top2 = chance.topk(2).values
        score = {
            "entropy": (chance * (chance + 1e-10).log()).sum(-1),
            "maskgit_plus": top2[:, 0],
            "topk_margin": top2[:, 0] - top2[:, 1],
        }[algorithm]
        place = int(score.argmax())
        chance[:, mask] = 0  # part of the distribution, but never proposed here
        column, token, forwards = open_[place], int(chance[place].argmax()), forwards + 1
        if token == EXPAND:
            text[column : column + 1] = [mask, mask]
            expansions -= 1
            moves.add("expand")
        elif token == END:
            text = [t for c, t in enumerate(text) if not (t == mask and c >= column)]
            moves.add("delete")
        else:
            text[column] = token
    return text, forwards, moves


def gaps(count: int, masks: int, seed: int) -> list[list[int]]:
    """Returns texts in random tokens with a gap of so many masks."""
    befores, afters = random_prompts(count, seed, 3, 20), random_prompts(count, seed + 1, 1, 20)
    keep = {EXPAND, END}
    texts = zip(befores, afters, strict=True)
    rows = [[*before, *[126] * masks, *after] for before, after in texts]
    return [[1 if token in keep else token for token in row] for row in rows]


@pytest.fixture(scope="module")
def model() -> dllm.HostedModel:
    """A model whose logits are shifted by one."""
    return golden_model("dream_gqa")


OPTIONS: dict[str, Any] = {"infill": True, "eos_token_id": END}
NAME = {"name": "dreamon", "expand_token_id": EXPAND}


@pytest.mark.parametrize("algorithm", ["entropy", "maskgit_plus", "topk_margin"])
def test_a_run_is_the_authors_loop(model: Any, algorithm: str) -> None:
    moves = set()
    for masks, room, expansions in ((4, 16, 16), (6, 9, 9), (8, 30, 4), (7, 2, 0)):
        limits = {"room": room, "expansions": expansions, "algorithm": algorithm}
        rows = gaps(6, masks, seed=masks)
        out = dllm.generate(model, rows, scheduler={**NAME, **limits}, **OPTIONS)
        for row, sequence, metrics in zip(rows, out.sequences, out.metrics.rows, strict=True):
            text, forwards, seen = by_the_authors_loop(model, row, algorithm, room, expansions)
            assert list(sequence) == text
            assert metrics.forwards == forwards
            assert metrics.finish_reason == "length"
            moves |= seen
    assert moves == {"expand", "delete"}


def test_an_answer_without_text_behind_it_finds_its_length(model: Any) -> None:
    prompts, answers = random_prompts(6), set()
    options: dict[str, Any] = {"scheduler": {**NAME, "room": 20}, "eos_token_id": END}
    out = dllm.generate(model, prompts, max_new_tokens=12, **options)
    for prompt, sequence in zip(prompts, out.sequences, strict=True):
        text, _, _ = by_the_authors_loop(model, [*prompt, *[126] * 12], "entropy", 20, 20)
        assert list(sequence) == text
        answers.add(len(text) - len(prompt))
    assert len(answers) > 1


def test_rows_that_wait_and_draws_are_those_of_a_row_alone(model: Any) -> None:
    rows = gaps(5, 4, seed=20)
    options: dict[str, Any] = {**OPTIONS, "scheduler": {**NAME, "room": 12}}
    options |= {"temperature": 0.8, "top_p": 0.9}
    together = dllm.generate(model, rows, batch_size=2, seed=[1, 2, 3, 4, 5], **options)
    for place, row in enumerate(rows):
        alone = dllm.generate(model, [row], seed=[place + 1], **options)
        assert together.sequences[place] == alone.sequences[0]
        assert together.metrics.rows[place] == alone.metrics.rows[0]


def test_a_trace_begins_with_the_text_around_the_gap_and_ends_with_what_is_there(
    model: Any,
) -> None:
    rows = gaps(4, 4, seed=30)
    out = dllm.generate(model, rows, scheduler={**NAME, "room": 12}, **OPTIONS)
    for number, row in enumerate(rows):
        frames = list(out.trace.replay(number))
        behind = len(row) - row.index(126) - 4
        assert len(frames) == out.metrics.rows[number].forwards + 1
        assert [t for t in frames[0] if t != 126][: len(row) - 4][: row.index(126)] == row[
            : -behind - 4
        ]
        length = int(out.trace.length[number])
        assert length == len(row) + 8
        assert frames[-1][length - behind : length] == row[-behind:]


def test_one_host_transfer_a_step(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, options = gaps(4, 6, seed=40), {**OPTIONS, "seed": 0, "temperature": 0.5}
    events = iter(dllm.stream(model, rows, scheduler=NAME, **options))
    next(events)  # tables are built once
    assert set(transfers_of(events, monkeypatch)) == {1}


def test_the_model_limit_bounds_the_gap(model: Any) -> None:
    short = replace(model, spec=replace(model.spec, max_length=20))
    row = [*[1] * 8, *[126] * 4, *[2] * 6]
    out = dllm.generate(short, [row], scheduler={**NAME, "room": 64}, **OPTIONS)
    text, forwards, _ = by_the_authors_loop(model, row, "entropy", 6, 64)
    assert list(out.sequences[0]) == text
    assert out.metrics.rows[0].forwards == forwards


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache": "dual"}, "cache 'dual' goes by columns"),
        ({"cache": "none:beyond_block=false"}, "use cache='none'"),
        ({"block_length": 8}, "as one block: give block_length=None, not 8"),
        ({"blocks_from": "zero"}, "give blocks_from='prompt', not 'zero'"),
        ({"verifier": "ssd"}, "refuses scheduler 'dreamon': it revises"),
        ({"scheduler": {"name": "prophet", "inner": NAME}}, "take 'dreamon' alone"),
        ({"scheduler": {"name": "adablock", "inner": NAME}}, "take 'dreamon' alone"),
        ({"fixed": {3: 1}}, "prompt 0 has several gaps, or text of `fixed`"),
        ({"scheduler": "dreamon"}, "needs a model with an expand token"),
        ({"scheduler": "dreamon:expand_token_id=128"}, "expand_token_id=128 is outside"),
    ],
)
def test_what_does_not_go_together_is_refused(model: Any, given: Any, message: str) -> None:
    options = {"scheduler": NAME, "max_new_tokens": 8, "eos_token_id": END, **given}
    with pytest.raises(ValueError, match=message):
        dllm.generate(model, [[1, 2, 3]], **options)


def test_several_gaps_wrapped_modules_and_other_attention_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="prompt 1 has several gaps"):
        dllm.generate(model, [[1, 126, 2], [1, 126, 2, 126]], scheduler=NAME, **OPTIONS)
    wrapped = dllm.wrap(
        lambda ids: torch.zeros(*ids.shape, 128),
        mask_token_id=126,
        eos_token_id=1,
        vocab_size=128,
        max_length=99,
    )
    with pytest.raises(ValueError, match="hides columns of a gap, which the wrapped module"):
        dllm.generate(wrapped, [[1, 126, 2]], scheduler=NAME, infill=True)
    with pytest.raises(ValueError, match="attention 'block_causal' of this model"):
        dllm.generate(family_model("sdar"), [[1, 127, 2]], scheduler=NAME, infill=True)
