"""The DSB cache: a pass by hand, and whole runs beside the published loop written down."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dllm
from dllm.cache.dsb import DSBCache, Refreshed
from dllm.schedulers.sliding import Sliding
from dllm.schedulers.threshold import Threshold
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from tests.support.models import Watched, golden_model, random_prompts
from tests.support.views import layout_of

THRESHOLD = 0.3


def canvas_of(commit_step: list[int], prompt: int, block_end: int, step: int) -> Canvas:
    """Returns a canvas of one row with columns committed in these steps, -1 for masks."""
    layout = layout_of(1, len(commit_step))
    done = torch.tensor([commit_step])
    slots = torch.arange(len(commit_step)) >= prompt
    tokens = torch.where((done < 0) & slots, layout.mask_token_id, 5)
    canvas = Canvas(layout, tokens, ~slots[None], torch.tensor([prompt]))
    canvas.commit_step, canvas.step = done.int(), torch.tensor([step])
    canvas.block_start, canvas.block_end = torch.tensor([prompt]), torch.tensor([block_end])
    return canvas


def test_a_pass_by_hand() -> None:
    # Four of a prompt, then tokens of steps 0, 2, 1, 2 and a mask at column 7; 9 was step 1's.
    canvas = canvas_of([-1, -1, -1, -1, 0, 2, 1, -1, -1, 1, -1, -1], 4, 10, step=3)
    spec = golden_model("llada_gqa").spec

    def fed(last: int, **options: Any) -> list[int]:
        canvas.note_pass(Refreshed(torch.tensor([last])))
        return DSBCache(**options).feeds(canvas, spec)[0].nonzero()[:, 0].tolist()

    # The first mask was at 5 before step 2: two columns to the left, whatever `before` says.
    assert fed(0, before=0, refresh=9) == [5, 6, 7, 8, 9]
    assert fed(0, before=4, refresh=9) == [3, 4, 5, 6, 7, 8, 9]
    assert fed(0, before=1, after=1, refresh=9) == [5, 6, 7, 8, 9, 10]
    # Steps 0, 1 and 2 committed 1, 2 and 1 tokens.
    assert fed(0, before=0, refresh=4) == list(range(12))
    assert fed(1, before=0, refresh=4) == [5, 6, 7, 8, 9]
    assert fed(1, before=0, refresh=3) == list(range(12))


def fed_range(model: Any, row: Any, start: int, end: int, store: Any) -> Any:
    """Returns the logits of a pass over the columns from `start` to `end`."""
    columns = torch.arange(start, end)[None]
    plan = StepPlan(
        kind="step",
        positions=columns,
        logit_rows=torch.arange(end - start)[None],
        num_keys=len(row),
        stored=columns,
    )
    return model.forward(row[None, start:end], plan, store)[0]


@torch.inference_mode()
def published(
    model: Any, prompt: list[int], slots: int, block: int, options: dict[str, int | None]
) -> tuple[list[int], list[tuple[int, int]]]:
    """One row decoded as the authors' loop goes: its tokens, and what each pass fed."""
    mask, start, most = model.spec.mask_token_id, len(prompt), options["most"]
    row = torch.tensor([*prompt, *[mask] * slots])
    total, store = len(row), model.new_store(1, len(row))
    s, e, written, passes = start, start + block, 0, []

    def commit(logits: Any, first: int) -> int:
        logits = logits.clone()
        logits[:, mask] = -torch.inf
        sure, token = logits.softmax(-1).max(-1)
        masks = [at for at in range(first, e) if row[at] == mask]
        best = max(masks, key=lambda at: float(sure[at - first]))
        chosen = [at for at in masks if sure[at - first] >= THRESHOLD or at == best]
        for at in chosen:
            row[at] = token[at - first]
        return len(chosen)

    while written < slots:
        passes.append((0, total))
        of_block = commit(fed_range(model, row, 0, total, store), 0)
        written += of_block
        while True:
            advance = next((at for at in range(e - s) if row[s + at] == mask), e - s)
            s += advance
            e = min(start + block + written, total if most is None else s + most, total)
            if of_block >= block or written == slots:
                break
            front = min(max(advance, options["before"] or 0), s)
            end = min(e + (options["after"] or 0), total)
            passes.append((s - front, end))
            more = commit(fed_range(model, row, s - front, end, store), s - front)
            of_block, written = of_block + more, written + more
    return row.tolist(), passes


@pytest.mark.parametrize(
    ("most", "before", "after"), [(None, 24, 0), (8, 3, 0), (None, 0, 0), (12, 2, 3)]
)
def test_runs_are_the_published_loops(most: int | None, before: int, after: int) -> None:
    model, slots, block = golden_model("llada_gqa"), 32, 8
    options: dict[str, int | None] = {"most": most, "before": before, "after": after}
    for prompt in random_prompts(5, seed=3):
        fed: list[tuple[int, int]] = []

        def check(tokens: Any, plan: StepPlan, *_: Any, fed: Any = fed) -> None:
            fed.append((int(plan.positions.min()), int(plan.positions.max()) + 1))
            assert plan.positions[0].diff().eq(1).all()

        watched: Any = Watched(model, check)
        out = dllm.generate(
            watched,
            [prompt],
            scheduler=Sliding(Threshold(THRESHOLD), most=most),
            cache=DSBCache(before, after),
            max_new_tokens=slots,
            block_length=block,
            at_eos="ignore",
        )
        tokens, passes = published(model, prompt, slots, block, options)
        assert list(out.sequences[0]) == tokens
        assert fed == passes


def test_a_batch_of_them_is_each_of_them() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(5, seed=3)
    scheduler, cache = Sliding(Threshold(THRESHOLD), most=8), DSBCache(3)
    given: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8, "at_eos": "ignore"}
    given |= {"scheduler": scheduler, "cache": cache}
    together = dllm.generate(model, prompts, **given).sequences
    alone = [dllm.generate(model, [prompt], **given).sequences[0] for prompt in prompts]
    assert list(together) == alone
    exact = dllm.generate(model, prompts, **{**given, "cache": "none"}).sequences
    assert together != exact, "the model does not feel stale keys"


@pytest.mark.parametrize("scheduler", ["sliding:threshold:0.3", "fixed_quota", "token_editing:0.4"])
def test_a_refresh_at_each_forward_is_exact(scheduler: str) -> None:
    model, prompts = golden_model("dream_gqa"), random_prompts(4)
    given: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "scheduler": scheduler}
    exact = dllm.generate(model, prompts, cache="none", **given).sequences
    assert dllm.generate(model, prompts, cache="dsb:refresh=1", **given).sequences == exact
