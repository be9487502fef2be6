"""Decoding with a cache beside decoding without one: tokens, and the logits of every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import dllm
from dllm.decoding.passes import in_window
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.models import MASK

NEW = 16
SLOTS: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": [6, 9, 13, 29, 72, 113]}
RAGGED = [[1, 2, 3], list(range(20, 41)), list(range(60, 76)), [9]]


class Recorded:
    """A model that keeps the logits of each pass, and what it fed."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model = model
        self.logits: list[Tensor] = []
        self.plans: list[StepPlan] = []
        self.stores: list[KVStore | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        logits = self.model.forward(tokens, plan, store)
        width = logits.shape[1] if plan.known is None else plan.known.shape[1]
        self.logits.append(in_window(logits, plan, width))
        self.plans.append(plan)
        self.stores.append(store)
        return logits


def decode(
    model: dllm.HostedModel, prompts: Any, **options: Any
) -> tuple[dllm.GenerationOutput, list[dllm.StepEvent], Recorded]:
    recorded: Any = Recorded(model)
    running = dllm.stream(recorded, prompts, **{**SLOTS, "seed": 0, **options})
    events = list(running)
    return running.output, events, recorded


def assert_exact(model: dllm.HostedModel, prompts: Any, cached: Any, **options: Any) -> Any:
    """Checks tokens and the logits of every masked column of every step; returns the output."""
    options = {**SLOTS, "seed": 0, **options}
    streams, passes = [], []
    for name in ("none", cached):
        recorded: Any = Recorded(model)
        streams.append(dllm.stream(recorded, prompts, cache=name, **options))
        passes.append(recorded)
    plain, quick = streams
    before, finished = quick.canvas.tokens.clone(), quick.canvas.finished.clone()
    compared = 0
    for event in plain:
        assert next(iter(quick), None) is not None
        first, second = (recorded.logits[-1] for recorded in passes)
        assert first.shape == second.shape
        wanted = (before.gather(1, event.columns) == MASK) & ~finished[:, None]
        if options.get("guidance_scale"):
            wanted = wanted.repeat(2, 1)
        if first.shape[0] == wanted.shape[0]:  # not the pass that compares variants
            torch.testing.assert_close(second[wanted], first[wanted], rtol=1e-9, atol=1e-9)
            compared += int(wanted.sum())
        assert torch.equal(plain.canvas.tokens, quick.canvas.tokens)
        before, finished = quick.canvas.tokens.clone(), quick.canvas.finished.clone()
    assert next(iter(quick), None) is None
    assert compared >= len(prompts)
    assert quick.output.sequences == plain.output.sequences
    assert quick.output.metrics.tokens_fed < plain.output.metrics.tokens_fed
    return quick.output
