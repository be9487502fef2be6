"""Token editing: diffusers' recorded steps, and what its options are at their ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import dllm
from dllm import schedulers
from dllm.schedulers import Scheduler
from dllm.schedulers.token_editing import TokenEditing
from dllm.state.candidates import Candidates
from tests.support import GOLDEN
from tests.support.models import MODELS, golden_model, random_prompts
from tests.support.views import layout_of, one_block, view_of

CASES = json.loads((GOLDEN / "cases" / "block_refinement_steps.json").read_text())["cases"]
LOGITS = GOLDEN / "cases" / "block_refinement_logits.safetensors"
CACHES = ["none", "prefix", "dual"]


@pytest.mark.few(4)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_recorded_steps_of_diffusers(case: dict[str, Any]) -> None:
    args, mask = case["args"], case["mask_token_id"]
    width, given = args["block_length"], case["prompt_mask_len"]
    threshold = args["editing_threshold"]
    scheduler = TokenEditing(
        threshold=args["threshold"],
        editing_threshold=threshold if threshold and threshold > 0 else None,  # theirs: 0 is off
        steps=args["num_inference_steps"],
    )
    layout = layout_of(1, width)
    layout = type(layout)(**{**vars(layout), "mask_token_id": mask})
    fixed = torch.arange(width)[None] < given
    state = {"post": torch.zeros(1, dtype=torch.int64)}
    num_edits = 0
    for step, logits in zip(case["trace"], load_file(LOGITS)[case["id"]], strict=True):
        before = torch.tensor([step["before"]])
        options = {"tokens": before, "fixed": fixed, "layout": layout, "state": state}
        view = view_of((before == mask) & ~fixed, step["step"], **options)
        candidates = Candidates(logits[None], logits[None].argmax(-1))
        decision = scheduler.decide(candidates, view)
        assert decision.commit[0].nonzero().flatten().tolist() == sorted(step["transfer"])
        written = decision.commit
        if decision.edit is not None:
            written = written | decision.edit
            num_edits += int(decision.edit.sum())
            assert decision.edit[0].nonzero().flatten().tolist() == sorted(step["edit"])
        else:
            assert not step["edit"]
        after = torch.where(written, candidates.token, before)
        assert after[0].tolist() == step["after"]
    assert num_edits == sum(len(step["edit"]) for step in case["trace"])


def block(*columns: tuple[int, float, int | None]) -> tuple[Candidates, torch.Tensor]:
    """Candidates over three tokens and a block: what is proposed, how surely, what is there."""
    chance = torch.tensor([[sure for _, sure, _ in columns]], dtype=torch.float64)
    proposed = torch.tensor([[token for token, _, _ in columns]])
    logits = ((1 - chance) / 2)[..., None].expand(-1, -1, 3).log()
    logits = logits.scatter(-1, proposed[..., None], chance.log()[..., None])
    there = [[10 if token is None else token for _, _, token in columns]]
    return Candidates(logits, proposed), torch.tensor(there)


def decide(scheduler: Scheduler, columns: list[Any], post: int = 0, **given: Any) -> Any:
    candidates, tokens = block(*columns)
    state = {"post": torch.tensor([post])}
    return scheduler.decide(candidates, view_of(tokens == 10, tokens=tokens, state=state, **given))


def test_a_forward_by_hand() -> None:
    scheduler = TokenEditing(threshold=0.7, editing_threshold=0.5)
    columns = [(1, 0.8, None), (1, 0.6, None), (2, 0.6, 1), (2, 0.4, 1), (1, 0.9, 1), (2, 0.9, 0)]
    fixed = torch.tensor([[False] * 5 + [True]])
    decision = decide(scheduler, columns, fixed=fixed)
    assert decision.commit.tolist() == [[True] + [False] * 5]
    # 0.4 is too little, the fifth says what is there already, the last is given text.
    assert decision.edit.tolist() == [[False, False, True, False, False, False]]
    assert decision.hold.tolist() == [False]


def test_a_threshold_itself_is_not_enough() -> None:
    columns = [(1, 0.8, None), (1, 0.7, None), (2, 0.6, 1), (2, 0.55, 1)]
    chance = block(*columns)[0].confidence[0].tolist()
    strict = TokenEditing(threshold=chance[1], editing_threshold=chance[3])
    decision = decide(strict, columns)
    assert decision.commit.tolist() == [[True, False, False, False]]
    assert decision.edit.tolist() == [[False, False, True, False]]


def test_a_mask_goes_though_none_is_sure() -> None:
    unsure = [(1, 0.4, None), (1, 0.5, None), (1, 0.35, None), (1, 0.45, None)]
    assert decide(TokenEditing(), unsure).commit.tolist() == [[False, True, False, False]]
    # Two of four columns a step: the best two, unless more than two are sure.
    quota = TokenEditing(threshold=0.7, steps=2)
    assert decide(quota, unsure).commit.tolist() == [[False, True, False, True]]
    eager = TokenEditing(threshold=0.3, steps=2)
    assert decide(eager, unsure).commit.tolist() == [[True] * 4]
    slow = TokenEditing(threshold=0.7, steps=99)
    assert decide(slow, unsure, block_step=50).commit.tolist() == [[False, True, False, False]]


def test_as_many_masks_go_as_it_says() -> None:
    unsure = [(1, 0.4, None), (1, 0.5, None), (1, 0.35, None), (1, 0.45, None)]
    for count, going in ((1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (9, [0, 1, 2, 3])):
        scheduler = TokenEditing(threshold=0.47, num_to_transfer=count)
        assert decide(scheduler, unsure).commit[0].nonzero().flatten().tolist() == going
    with pytest.raises(ValueError, match="steps=4 and num_to_transfer=2 both say"):
        TokenEditing(steps=4, num_to_transfer=2)


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", CACHES)
def test_the_last_block_is_edited_to_its_end(cache: str) -> None:
    """With at_eos="block" the block of the end token is as it is where nothing ends a row."""
    scheduler = "token_editing:0.4,editing_threshold=0.3,post_steps=3"
    ends = [9, 13, 29, 72, 113, 120]
    ended = run(scheduler, cache=cache, at_eos="block", eos_token_id=ends)
    further = run(scheduler, cache=cache)
    early = False
    for row, (sequence, other) in enumerate(zip(ended.sequences, further.sequences, strict=True)):
        start = len(random_prompts(4)[row])
        blocks = [other[at : at + 8] for at in range(start, start + 24, 8)]
        last = next((n for n, block in enumerate(blocks) if set(block) & set(ends)), 2)
        assert sequence[: start + 8 * last + 8] == other[: start + 8 * last + 8]
        early = early or last < 2
    assert early, "no row ended early"


def test_how_long_a_full_block_is_held() -> None:
    scheduler = TokenEditing(post_steps=3)
    last = [(1, 0.9, None), (1, 0.9, 1)]
    moving, settled = [(2, 0.9, 1), (1, 0.9, 1)], [(1, 0.9, 1), (1, 0.9, 1)]
    assert decide(scheduler, last).hold.tolist() == [True]
    assert decide(scheduler, settled, post=0).hold.tolist() == [False]
    holds = [decide(scheduler, moving, post=post) for post in range(3)]
    assert [bool(decision.hold) for decision in holds] == [True, True, False]
    assert [int(decision.state["post"]) for decision in holds] == [1, 2, 3]
    assert decide(TokenEditing(post_steps=0), last).hold.tolist() == [False]
    # A block that took all steps of its schedule is not held, a later one counts anew.
    scheduled = TokenEditing(steps=2)
    held = [decide(scheduled, last, post=9, block_step=step).hold.tolist() for step in (0, 1)]
    assert held == [[True], [False]]


def run(scheduler: Any, name: str = "llada_gqa", **given: Any) -> dllm.GenerationOutput:
    options = {"max_new_tokens": 24, "block_length": 8, "at_eos": "ignore", **given}
    return dllm.generate(golden_model(name), random_prompts(4), scheduler=scheduler, **options)


@pytest.mark.few(3)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("threshold", [0.3, pytest.param(0.6, marks=pytest.mark.slow)])
def test_without_edits_it_is_the_threshold(name: str, cache: str, threshold: float) -> None:
    expected = run(f"threshold:{threshold}", name, cache=cache)
    out = run(f"token_editing:{threshold},editing_threshold=null", name, cache=cache)
    assert out.sequences == expected.sequences
    assert torch.equal(out.trace.commit_step, expected.trace.commit_step)
    assert out.metrics.forwards == expected.metrics.forwards
    assert out.trace.changes is None
    # Nothing is surer than 1; each full block takes one forward to find that out.
    never = run(f"token_editing:{threshold},editing_threshold=1", name, cache=cache)
    assert all(len(set(row)) == len(row) for row in never.trace.changes or ())
    if cache == "none":
        assert never.sequences == expected.sequences
        for row, plain in zip(never.metrics.rows, expected.metrics.rows, strict=True):
            assert row.forwards == plain.forwards + 3
    unheld = run(f"token_editing:{threshold},editing_threshold=1,post_steps=0", name, cache=cache)
    assert unheld.sequences == expected.sequences
    assert unheld.metrics.forwards == expected.metrics.forwards


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", CACHES)
def test_edits_change_a_full_block(cache: str) -> None:
    out = run("token_editing:0.4,editing_threshold=0.3,post_steps=3", cache=cache)
    plain = run("token_editing:0.4,editing_threshold=null", cache=cache)
    assert out.sequences != plain.sequences
    for row in range(4):
        writes = [{column for column, _ in step} for step in out.trace.commits(row)]
        assert any(a & b for i, a in enumerate(writes) for b in writes[:i]), "nothing was edited"
        assert out.metrics.rows[row].forwards > plain.metrics.rows[row].forwards


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**20), threshold=st.sampled_from([0.0, 0.5, 0.9]))
def test_what_does_not_move_is_edited_at_most_once(seed: int, threshold: float) -> None:
    """The model says the same whatever stands there: then every column is right at once."""
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, 10, generator=source) * 3
    candidates = Candidates(logits, logits.argmax(-1))
    scheduler = TokenEditing(threshold=0.6, editing_threshold=threshold)
    fixed = torch.zeros(3, 6, dtype=torch.bool)
    steps = 0
    for decision, _, step in one_block(scheduler, lambda: candidates, fixed):
        assert decision.edit is None or not decision.edit.any()
        steps = int(step.max())
    assert steps <= 6 + 1


def test_two_tokens_may_take_turns_until_the_budget_ends() -> None:
    proposals = [torch.full((3, 6), token) for token in (0, 1)]
    sure = [torch.zeros(3, 6, 11).scatter(-1, p[..., None], 9.0) for p in proposals]
    turns = iter(range(999))

    def draw() -> Candidates:
        return Candidates(sure[(turn := next(turns) // 2 % 2)], proposals[turn])

    fixed = torch.zeros(3, 6, dtype=torch.bool)
    for post_steps in (0, 1, 5):
        scheduler = TokenEditing(post_steps=post_steps)
        steps = [step for _, _, step in one_block(scheduler, draw, fixed)]
        assert steps[-1].tolist() == [1 + post_steps] * 3


def test_presets_and_wrong_options() -> None:
    create = schedulers.registry.create
    assert create("token_editing@speed") == TokenEditing(threshold=0.5, editing_threshold=0.0)
    assert create("token_editing@quality") == TokenEditing()
    for wrong in ({"post_steps": -1}, {"steps": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
            TokenEditing(**wrong)
