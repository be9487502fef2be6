"""Laws of templates laid out: what is fixed stays, what is a hole is filled, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dllm
from dllm.constraints import Hole, Template
from tests.support.languages import Spelled, random_automaton
from tests.support.laws import SCHEDULERS, grows, is_first, options_of, suited
from tests.support.models import MODELS, random_prompts
from tests.support.numbered import numbered, spelled

NAME = "llada_gqa"
LEAD, MIDDLE, END = [5, 6], [7, 8, 9], [10, 11]
PARTS: tuple[Any, ...] = (spelled(LEAD), Hole(tokens=4), spelled(MIDDLE), Hole(tokens=6))
FIRST = [one for one in SCHEDULERS if is_first(one)]


def pieces(out: Any, row: int, prompt: list[int], *lengths: int) -> list[list[int]]:
    """Returns a row without its prompt in pieces of so many tokens."""
    ids, found = list(out.sequences[row]), []
    assert ids[: len(prompt)] == prompt
    at = len(prompt)
    for length in lengths:
        found.append(ids[at : at + length])
        at += length
    assert at == len(ids)
    return found


@pytest.mark.parametrize("scheduler", FIRST, ids=str)
def test_every_scheduler_fills_the_holes_and_nothing_else(scheduler: Any) -> None:
    model, prompts = suited(numbered(NAME), scheduler), random_prompts(3)
    template = Template(*PARTS, spelled(END))
    options = options_of(scheduler, seed=0, block_length=8, template=template)
    made = dllm.schedulers.registry.create(scheduler)
    refused = made.moves_tokens or made.needs(16, 8).shortens
    if refused or grows(scheduler):
        with pytest.raises(ValueError, match=r"template= refuses scheduler .*: it "):
            dllm.generate(model, prompts, **options)
        return
    first = dllm.stream(model, prompts, **options)
    for row, prompt in enumerate(prompts):
        held = first.canvas.tokens[row].tolist()[len(prompt) :][: 2 + 4 + 3 + 6 + 2]
        mask = model.spec.mask_token_id
        assert held == [*LEAD, *[mask] * 4, *MIDDLE, *[mask] * 6, *END]
    out = dllm.generate(model, prompts, **options)
    ends = {*model.spec.eos_token_ids, model.spec.pad_token_id}
    for row, prompt in enumerate(prompts):
        lead, one, middle, other, end = pieces(out, row, prompt, 2, 4, 3, 6, 2)
        assert (lead, middle, end) == (LEAD, MIDDLE, END)
        assert not {*one, *other} & {*ends, model.spec.mask_token_id}
        assert [list(hole.tokens) for hole in out.holes[row]] == [one, other]
        assert out.texts is not None
        assert out.texts[row] == spelled([*LEAD, *one, *MIDDLE, *other, *END])


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("name", MODELS)
def test_one_hole_and_no_text_is_ordinary_decoding(name: str, cache: str) -> None:
    model, prompts = numbered(name), random_prompts(3)
    options: dict[str, Any] = {"block_length": 8, "cache": cache, "seed": 3, "temperature": 0.7}
    plain = dllm.generate(model, prompts, max_new_tokens=24, **options)
    laid = dllm.generate(model, prompts, template=Template(Hole(tokens=24)), **options)
    assert laid.sequences == plain.sequences
    assert laid.texts == plain.texts
    assert laid.metrics.rows == plain.metrics.rows
    assert laid.trace.commit_step.equal(plain.trace.commit_step)


@pytest.mark.parametrize("name", MODELS)
def test_text_may_stand_in_the_prompt_or_in_the_template(name: str) -> None:
    model, prompts = numbered(name), random_prompts(3)
    options: dict[str, Any] = {"block_length": 4, "scheduler": "fixed_quota:tokens_per_step=1"}
    rest: tuple[Any, ...] = (Hole(tokens=6), spelled(MIDDLE), Hole(tokens=5))
    inside = dllm.generate(model, prompts, template=Template(spelled(LEAD), *rest), **options)
    moved = [[*prompt, *LEAD] for prompt in prompts]
    before = dllm.generate(model, moved, template=Template(*rest), **options)
    assert inside.sequences == before.sequences
    assert inside.holes == before.holes


def test_later_text_steers_earlier_holes() -> None:
    model, prompts = numbered(NAME), random_prompts(4)
    one = dllm.generate(model, prompts, template=Template(Hole(tokens=6), "10 11 12"))
    other = dllm.generate(model, prompts, template=Template(Hole(tokens=6), "90 91 92"))
    assert one.holes != other.holes


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_batch_is_its_rows_alone(cache: str) -> None:
    model, prompts = numbered(NAME), random_prompts(3)
    templates = [
        Template(*PARTS),
        Template(Hole(tokens=(2, 5)), spelled(END)),
        Template("3", Hole(tokens=(1, 3)), "4", Hole(tokens=(2, 4)), "5"),
    ]
    options: dict[str, Any] = {"cache": cache, "block_length": 4, "seed": 1}
    together = dllm.generate(model, prompts, template=templates, **options)
    waiting = dllm.generate(model, prompts, template=templates, batch_size=2, **options)
    for number, (prompt, template) in enumerate(zip(prompts, templates, strict=True)):
        alone = dllm.generate(model, [prompt], template=template, **options)
        for out in (together, waiting):
            assert out.sequences[number] == alone.sequences[0]
            assert out.holes[number] == alone.holes[0]
            assert [one.lengths for one in out.tried[number]] == [
                one.lengths for one in alone.tried[0]
            ]
            assert [one.score for one in out.tried[number]] == pytest.approx(
                [one.score for one in alone.tried[0]]
            )
        assert together.metrics.rows[number].finish_reason == "length"


@pytest.mark.parametrize("verifier", ["ssd", "freedave"])
def test_a_verifier_changes_nothing(verifier: str) -> None:
    model, prompts = numbered(NAME), random_prompts(3)
    template = Template(Hole(tokens=(3, 6)), spelled(MIDDLE), Hole(tokens=8))
    options: dict[str, Any] = {"template": template, "block_length": 8}
    options |= {"scheduler": "fixed_quota:tokens_per_step=1"}
    plain = dllm.generate(model, prompts, **options)
    fast = dllm.generate(model, prompts, verifier=verifier, **options)
    assert fast.sequences == plain.sequences
    assert fast.tried == plain.tried


@pytest.mark.parametrize("joint", ["confidence", "map"])
def test_each_hole_is_held_to_its_own_constraint(joint: Any) -> None:
    """Of random languages, so that a hole that took the other's would be found."""
    model, prompts, rng = numbered("llada_mha"), random_prompts(6), np.random.default_rng(2)
    sizes = [(3, 4), (5, 3), (4, 6)]
    ends = {*model.spec.eos_token_ids, model.spec.pad_token_id}
    seen = 0
    while seen < 6:
        languages = [Spelled(random_automaton(rng, 4)) for _ in range(3)]
        first, second = sizes[seen % 3]
        parts = (Hole(languages[0], first), "7 8", Hole(languages[1], second), "9", Hole())
        try:
            out = dllm.generate(model, prompts, template=Template(*parts), joint=joint, seed=seen)
        except ValueError as error:
            assert "has no text of" in str(error)  # noqa: PT017 most random languages have some
            continue
        seen += 1
        for holes in out.holes:
            for hole, language, size in zip(holes, languages, (first, second), strict=False):
                assert len(hole.tokens) == size
                classes = [token % 4 for token in hole.tokens]
                assert language.inner.accepts(classes)
                assert not ends & {*hole.tokens}


def test_a_last_hole_may_end_before_its_slots() -> None:
    model = dllm.load("tiny")
    question = "zoe has 62 eggs. zoe sells 17. how many eggs does zoe have?"
    template = Template("62-17=", Hole(tokens=2), "; ", Hole(tokens=16))
    out = dllm.generate(model, question, template=template)
    assert out.texts == ("62-17=45; #### 45",)
    assert [hole.text for hole in out.holes[0]] == ["45", "#### 45"]
    assert out.metrics.rows[0].finish_reason == "eos"
    assert out.metrics.rows[0].valid_tokens == 2 + 3
