"""What the filter learns from: an oracle that commits exactly what is already final."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm.generate import Stream, generate, stream
from dllm.models.model import DenoisingModel
from dllm.prompts import Prompts
from dllm.schedulers import Decision, Needs, Scheduler, Setup, View
from dllm.schedulers.view import State
from dllm.settings import Settings
from dllm.state.candidates import Candidates
from dllm.state.event import StepEvent


@dataclass(frozen=True)
class Examples:
    """N blocks as a pass saw them."""

    confidence: Tensor  # (N, W) float32 of the proposed tokens
    final: Tensor  # (N, W) bool: the proposed token is the one that will stand there
    masked: Tensor  # (N, W) bool: it was still to be decided
    real: Tensor  # (N, W) bool: the column is within the row
    prompt: Tensor  # (N,) int64 which prompt the block is of

    def at(self, index: Tensor) -> Examples:
        """Returns the examples at an index, (n,) int64 or (N,) bool."""
        return Examples(**{name: value[index] for name, value in vars(self).items()})


def join(parts: Sequence[Examples]) -> Examples:
    """Returns all examples of one or more sets, on the CPU."""
    names = vars(parts[0])
    return Examples(**{name: torch.cat([getattr(p, name).cpu() for p in parts]) for name in names})


@dataclass(frozen=True, eq=False)
class Oracle(Scheduler):
    """Commits the block's columns whose proposed token equals the reference.

    If a pass proposes for the whole block what the last one did, the rest of the block is given:
    some columns are never proposed right (the authors' guard).
    """

    reference: Tensor  # (B, C) int64 by canvas column

    source: ClassVar[str] = (
        "arXiv 2509.25188 (extremely greedy parallel); ims-kdks/Learning-to-Parallel-Decoding "
        "llada/generate_training_data.py:generate_data"
    )

    @property
    def may_skip(self) -> bool:
        return True

    def needs(self, num_slots: int, block_length: int) -> Needs:
        return Needs(whole_block=True)  # the filter sees committed columns, too

    def start(self, setup: Setup) -> State:
        shape = (setup.num_rows, setup.width)
        return {"proposed": torch.full(shape, -1, device=setup.device)}

    def select(self, candidates: Candidates, view: View) -> Decision:
        known = view.columns.clamp(max=self.reference.shape[1] - 1)
        reference = self.reference.gather(1, known)
        real = view.columns < view.length[:, None]
        again = ((candidates.token == view.state["proposed"]) | ~real).all(1)
        stuck = again & (view.block_step > 0)
        commit = (candidates.token == reference) | stuck[:, None]
        return Decision(commit, tokens=reference, state={"proposed": candidates.token})


def collect(model: DenoisingModel, prompts: Prompts, settings: Settings) -> Examples:
    """Returns what the oracle's run over a batch of prompts shows, a block and pass at a time.

    The reference is the model's own answer under `settings`, whose scheduler should be slow.
    """
    answered = generate(model, prompts, settings).sequences
    longest = max(map(len, answered))
    by_column = [[*tokens, *[-1] * (longest - len(tokens))] for tokens in answered]
    oracle = Oracle(torch.tensor(by_column, device=model.device))
    return observe(stream(model, prompts, settings, scheduler=oracle), oracle.reference)


def observe(running: Stream, reference: Tensor) -> Examples:
    """Drains an oracle's run and returns its examples, in the order of passes, then rows."""
    parts, before = [], running.canvas.step.clone()
    for event in running:
        step = running.canvas.step
        parts.append(_examples(running, event, reference).at(step > before))
        before = step.clone()
    return join(parts)


def _examples(running: Stream, event: StepEvent, reference: Tensor) -> Examples:
    """Returns the blocks of all rows after a step, (B, W)."""
    columns = event.columns
    known = columns.clamp(max=reference.shape[1] - 1)
    masked = event.committed | (event.tokens == running.canvas.layout.mask_token_id)
    return Examples(
        confidence=event.confidence.float(),
        final=event.drafts == reference.gather(1, known),
        masked=masked,
        real=columns < running.canvas.length[:, None],
        prompt=torch.arange(len(columns), device=columns.device),
    )
