"""FreeCache: a pass by hand, and whole runs beside the published loop written down."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dllm
from dllm.cache.free import FreeCache
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from tests.support.marks import crossed
from tests.support.models import Watched, family_model, golden_model, random_prompts
from tests.support.views import layout_of

NAMES = ("llada_gqa", "dream_gqa")


@pytest.mark.parametrize(("name", "lead"), [("llada_gqa", 0), ("dream_gqa", 1)])
def test_a_pass_by_hand(name: str, lead: int) -> None:
    layout, spec = layout_of(2, 8), golden_model(name).spec
    tokens = torch.full((2, 8), layout.mask_token_id)
    fixed = torch.arange(8).expand(2, 8) < 2
    canvas = Canvas(layout, tokens.masked_fill(fixed, 5), fixed, torch.tensor([2, 2]))
    canvas.block_start, canvas.block_end = torch.tensor([2, 4]), torch.tensor([4, 6])
    canvas.step = torch.tensor([0, 3])
    fed = FreeCache().feeds(canvas, spec)
    assert fed[0].all()
    assert fed[1].nonzero()[:, 0].tolist() == list(range(4 - lead, 8))


@torch.inference_mode()
def published(
    model: Any, prompt: list[int], slots: int, block: int, threshold: float
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """One row as the authors' loop goes: its tokens, when each was written, what passes fed."""
    mask, start, lead = model.spec.mask_token_id, len(prompt), model.spec.logit_shift
    row, when = torch.tensor([*prompt, *[mask] * slots]), [-1] * slots
    store, fed = model.new_store(1, len(row)), list[tuple[int, int]]()
    for begin in range(start, start + slots, block):
        end = begin + block
        while mask in row[begin:end]:
            first = begin - lead if fed else 0
            columns = torch.arange(first, len(row))[None]
            rows = torch.arange(columns.shape[1])[None]
            plan = StepPlan("step", columns, rows, len(row), stored=columns)
            logits = model.forward(row[None, first:], plan, store)[0]
            sure, token = logits.softmax(-1), logits.clone()
            token[:, mask] = -torch.inf
            token = token.argmax(-1)
            sure = sure.gather(1, token[:, None])[:, 0]
            open_ = [at for at in range(begin, end) if row[at] == mask]
            best = max(open_, key=lambda at: float(sure[at - lead - first]))
            for at in [at for at in open_ if sure[at - lead - first] >= threshold or at == best]:
                row[at], when[at - start] = token[at - lead - first], len(fed)
            fed.append((first, len(row)))
    return row.tolist(), when, fed


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("name", "threshold", "block", "rows", "seed"),
    crossed(NAMES, (0.3, 0.6, 1.0), (6, 8, 24), (1, 3, 5), (1, 2, 3)),
)
def test_runs_are_the_published_loops(
    name: str, threshold: float, block: int, rows: int, seed: int
) -> None:
    model, prompts = golden_model(name), random_prompts(rows, seed=seed)
    passes: list[tuple[int, int]] = []

    def check(tokens: Any, plan: StepPlan, *_: Any) -> None:
        passes.append((int(plan.positions[0].min()), int(plan.positions[0].max()) + 1))

    watched: Any = Watched(model, check)
    options: dict[str, Any] = {"max_new_tokens": 24, "block_length": block, "at_eos": "ignore"}
    options |= {"scheduler": f"threshold:{threshold}", "cache": "free"}
    out = dllm.generate(watched, prompts, **options)
    for row, prompt in enumerate(prompts):
        tokens, when, fed = published(model, prompt, 24, block, threshold)
        assert list(out.sequences[row]) == tokens
        assert out.trace.commit_step[row, len(prompt) :][:24].tolist() == when
        assert out.metrics.rows[row].forwards == len(fed)
        if rows == 1:
            assert passes == fed


def test_what_a_block_ended_with_stays_a_mask() -> None:
    """The cache differs from `prefix` in the second block, and only from there on."""
    model, prompts = golden_model("llada_gqa"), random_prompts(4)
    options: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "at_eos": "ignore"}
    options |= {"scheduler": "threshold:0.5"}
    free = dllm.generate(model, prompts, cache="free", **options).sequences
    prefix = dllm.generate(model, prompts, cache="prefix", **options).sequences
    assert free != prefix
    for one, other, prompt in zip(free, prefix, prompts, strict=True):
        assert one[: len(prompt) + 8] == other[: len(prompt) + 8]


def test_models_with_exact_caches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cache 'free' keeps what blocks were.*'block_causal'"):
        dllm.generate(family_model("sdar"), [[1, 2, 3]], cache="free", max_new_tokens=8)
