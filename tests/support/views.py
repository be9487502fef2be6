"""Views and candidates by hand, and a block that a scheduler fills from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dllm import schedulers
from dllm.schedulers import Decision, Scheduler, Setup, View
from dllm.state.candidates import Candidates
from dllm.state.carried import merged
from dllm.state.noise import CounterNoise
from dllm.state.window import OF_ROWS, PER_COLUMN, PER_ROW, Layout

MASK = 10


SETUP = Setup(
    num_rows=4,
    width=8,
    num_slots=8,
    block_length=8,
    vocab_size=11,
    dtype=torch.float32,
    device=torch.device("cpu"),
)


def view_of(masked: Tensor, block_step: int = 0, steps_done: int = 0, **other: Any) -> View:
    rows, width = masked.shape
    each = torch.ones(rows, dtype=torch.int64)
    fields: dict[str, Any] = {
        "columns": torch.arange(width).expand(rows, width),
        "tokens": torch.where(masked, MASK, 0),
        "masked": masked,
        "block": torch.ones_like(masked),
        "known": torch.ones_like(masked),
        "fixed": torch.zeros_like(masked),
        "length": each * width,
        "prompt_length": each * 0,
        "num_slots": each * width,
        "step": each * steps_done,
        "block_step": each * block_step,
        "block_masks": masked.sum(1),
        "num_blocks": each,
        "fresh": each * block_step == 0,
        "prompts": torch.arange(rows),
        "layout": layout_of(rows, width),
        "noise": CounterNoise(torch.arange(rows)),
    }
    return View(**{**fields, **other})


def layout_of(rows: int, width: int) -> Layout:
    return Layout(
        num_rows=rows,
        num_columns=width,
        block_length=width,
        mask_token_id=MASK,
        fill_token_id=9,
        eos_token_ids=(9,),
        lengths=(width,) * rows,
        kept=(width,) * rows,
        num_slots=width,
        window_length=width,
    )


def candidates_of(confidence: list[list[float]]) -> Candidates:
    """Candidates over three tokens, the first of which has the given probability."""
    first = torch.tensor(confidence, dtype=torch.float64)
    rest = (1 - first) / 2
    return Candidates(torch.stack([first, rest, rest], -1).log(), torch.zeros(first.shape).long())


def offered(scheduler: Scheduler, rows: int, width: int) -> dict[str, Any]:
    """Returns what a view has besides for a scheduler that asks for room: a gap, half of it used.

    The layout of its model knows a token that asks for more.
    """
    if not scheduler.needs(width, width).room:
        return {}
    room, layout = torch.full((rows,), width), replace(layout_of(rows, width), expand_token_id=3)
    return {"gap": room - width // 2, "room": room, "layout": layout}


def _row(view: View, row: int) -> View:
    names = (*PER_COLUMN, *(PER_ROW if view.gap is None else OF_ROWS))
    shadow = view.shadow
    one = {name: getattr(view, name)[row : row + 1] for name in names}
    state = {name: value[row : row + 1] for name, value in view.state.items()}
    assert isinstance(view.noise, CounterNoise)
    if shadow is not None:
        shadow = Candidates(shadow.logits[row : row + 1], shadow.token[row : row + 1])
    noise = CounterNoise(view.noise.seeds[row : row + 1])
    return replace(view, **one, state=state, noise=noise, shadow=shadow)


ROWS, WIDTH = 3, 6  # of what meets logits that mean nothing


def one_block(
    scheduler: Scheduler, draw: Callable[[], Candidates], fixed: Tensor
) -> Iterator[tuple[Decision, Tensor, Tensor]]:
    """Fills a block of each row as the loop does; yields decisions, tokens (B, W) and who moved."""
    tokens = torch.full((ROWS, WIDTH), MASK).masked_fill(fixed, 0)
    state = scheduler.start(replace(SETUP, num_rows=ROWS, width=WIDTH))
    held = torch.zeros(ROWS, dtype=torch.bool)
    step, block_masks = torch.zeros(ROWS, dtype=torch.int64), (tokens == MASK).sum(1)
    while True:
        masked = (tokens == MASK) & ~fixed
        active = masked.any(1) | held
        if not active.any():
            return
        candidates, shadow = draw(), draw()
        given: dict[str, Any] = {"tokens": tokens, "fixed": fixed, "state": state, "shadow": shadow}
        given |= {"block_masks": block_masks, "fresh": step == 0, "step": step, "block_step": step}
        decision = scheduler.decide(candidates, view_of(masked, **given))
        nowhere = torch.zeros_like(masked)
        edit, remask = (nowhere if x is None else x for x in (decision.edit, decision.remask))
        moving = active[:, None]
        tokens = torch.where((decision.commit | edit) & moving, candidates.token, tokens)
        tokens = tokens.masked_fill(remask & moving, MASK)
        if decision.hold is not None:
            held = torch.where(active, decision.hold, held)
        if decision.state is not None or decision.replaced is not None:
            state = merged(state, decision.state, decision.replaced, active)
        step = step + active
        yield decision, tokens, step


def check_contract(name: str) -> None:
    """Fails where a scheduler of the registry breaks the contract, on random logits."""
    source = torch.Generator().manual_seed(0)
    scheduler = schedulers.registry.create(name)
    assert scheduler.source
    assert schedulers.registry.create(scheduler.summary()) == scheduler
    for _ in range(20):
        logits = torch.randn(4, 8, 11, generator=source) * 3
        masked = torch.rand(4, 8, generator=source) < 0.6
        masked[3] = False
        candidates = Candidates(logits, logits.argmax(-1))
        if more := offered(scheduler, 4, 8):
            masked = masked & (torch.arange(8) < more["gap"][:, None])
        view = view_of(masked, state=scheduler.start(SETUP), shadow=candidates, **more)
        decision = scheduler.decide(candidates, view)
        assert decision.commit.dtype == torch.bool
        assert not (decision.commit & ~masked).any()
        if not scheduler.may_skip:
            variants = decision.variants
            moved = decision.commit.any(1)
            if variants is not None:
                moved = moved | variants.needed
            assert torch.equal(moved, masked.any(1))
        for row in range(3):
            alone = scheduler.decide(
                Candidates(logits[row : row + 1], candidates.token[row : row + 1]),
                _row(view, row),
            )
            for name, value in vars(decision).items():
                if isinstance(value, Tensor):
                    assert torch.equal(getattr(alone, name)[0], value[row]), name
