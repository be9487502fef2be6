"""One denoising step of SGLang's blocks by one of our schedulers, and what a request carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from dllm.schedulers import Decision, Scheduler, Setup, View
from dllm.state.candidates import Sampling
from dllm.state.carried import State, merged
from dllm.state.window import Layout


class NotHostedError(ValueError):
    """A scheduler asks for something that the engine does not tell an algorithm."""


_NO_SEED = "it draws random numbers, and the engine tells no seed of a request"


class Silence:
    """Noise of an engine that tells no seed of a request: whoever asks for it is not hosted."""

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        """Raises NotHostedError."""
        raise NotHostedError(_NO_SEED)

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        """Raises NotHostedError."""
        raise NotHostedError(_NO_SEED)


# What of a view only the engine knows.
UNTOLD = {
    "length": "it reads how long the row is, which the engine does not tell",
    "prompt_length": "it reads where the prompt ends, which the engine does not tell",
    "num_slots": "it reads how long the answer is, which the engine does not tell",
    "prompts": "it tells prompts apart, which the engine does not number",
    "step": "it reads how many forwards the row has had, and the engine tells those of a block",
}


class BlockView(View):
    """A block that is a canvas of its own: what stands around it, only the engine knows.

    A wrong number would be worse than none: who asks for one is not hosted.
    """

    def __getattribute__(self, name: str) -> Any:
        if name in UNTOLD:
            raise NotHostedError(UNTOLD[name])
        return super().__getattribute__(name)

    def is_end(self, tokens: Tensor) -> Tensor:
        """Raises NotHostedError."""
        raise NotHostedError("it looks for end tokens, which the engine does not tell")


@dataclass(frozen=True)
class Blocks:
    """The blocks of some requests, as they are carried from one forward to the next."""

    fixed: Tensor  # (B, W) bool: of the prompt, or of an answer that the engine reads anew
    masks: Tensor  # (B,) int64 masks that the block began with
    forwards: Tensor  # (B,) int64 in which the block was decided on
    steps: Tensor  # (B,) int64 schedule steps
    held: Tensor  # (B,) bool: the block is decided on though it is full
    state: State  # of the scheduler

    def row(self, number: int) -> Blocks:
        """Returns the block of one request."""
        own = {name: getattr(self, name)[number : number + 1] for name in _PER_ROW}
        return Blocks(**own, state={k: v[number : number + 1] for k, v in self.state.items()})


_PER_ROW = tuple(field.name for field in fields(Blocks) if field.name != "state")


@dataclass(frozen=True)
class Carried:
    """What one request carries: its place among the blocks of its last forward."""

    blocks: Blocks
    row: int


def joined(carried: Sequence[Carried]) -> Blocks:
    """Returns the blocks of requests that share a forward, of whatever forwards they come."""
    blocks = carried[0].blocks
    together = len(blocks.fixed) == len(carried)
    if together and all(one.blocks is blocks and one.row == n for n, one in enumerate(carried)):
        return blocks
    # Over rows, on the host: the engine hands over one state a request, and mixes them anew.
    rows = [one.blocks.row(one.row) for one in carried]
    whole = {name: torch.cat([getattr(row, name) for row in rows]) for name in _PER_ROW}
    return Blocks(
        **whole, state={k: torch.cat([row.state[k] for row in rows]) for k in rows[0].state}
    )


@dataclass(frozen=True)
class Hosted:
    """A scheduler that decides on blocks of an engine, each as if it were a canvas of its own."""

    scheduler: Scheduler
    mask_token_id: int
    block_length: int

    def begin(self, tokens: Tensor, fixed: Tensor, logits: Tensor) -> Blocks:
        """Returns blocks (B, W) before their first step, with the logits (B, W, V) of that."""
        num_rows, width = tokens.shape
        setup = Setup(
            num_rows=num_rows,
            width=width,
            num_slots=width,
            block_length=width,
            vocab_size=logits.shape[-1],
            dtype=torch.float32,
            device=tokens.device,
        )
        masks = ((tokens == self.mask_token_id) & ~fixed).sum(1)
        zero, state = torch.zeros_like(masks), self.scheduler.start(setup)
        return Blocks(fixed, masks, zero, zero, zero.bool(), state)

    def step(self, tokens: Tensor, logits: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor, Blocks]:
        """Returns the tokens (B, W) after a step, which blocks (B,) are done, and what goes on.

        A block is done when its forward saw the tokens that it ends with: the engine keeps the
        keys and values of that forward. So the one that fills a block never ends it.
        """
        masked = (tokens == self.mask_token_id) & ~blocks.fixed
        active = masked.any(1) | blocks.held
        view = self._view(tokens, masked & active[:, None], blocks)
        candidates = self._sampling.propose(logits, view.noise, view.columns, blocks.forwards)
        decision = self.scheduler.decide(candidates, view)
        check_decision(decision)
        after = self._written(decision, tokens, candidates.token)
        after = torch.where(active[:, None], after, tokens)
        blocks = _moved(blocks, decision, active)
        left = ((after == self.mask_token_id) & ~blocks.fixed).any(1) | blocks.held
        return after, ~left & (after == tokens).all(1), blocks

    def _written(self, decision: Decision, tokens: Tensor, proposed: Tensor) -> Tensor:
        chosen = decision.commit
        new = proposed if decision.tokens is None else decision.tokens
        if decision.edit is not None:
            chosen = chosen | decision.edit
        if decision.remask is not None:
            chosen = chosen | decision.remask
            new = new.masked_fill(decision.remask, self.mask_token_id)
        return torch.where(chosen, new, tokens)

    @property
    def _sampling(self) -> Sampling:
        """What reads the logits: the most probable tokens, as the engine's own algorithms."""
        needs = self.scheduler.needs(self.block_length, self.block_length)
        return Sampling(
            mask_token_id=self.mask_token_id,
            confidence=self.scheduler.reads,
            forbidden_token_ids=(self.mask_token_id,) if self.scheduler.without_mask else (),
            lean=not needs.reads_logits,
        )

    def _view(self, tokens: Tensor, masked: Tensor, blocks: Blocks) -> View:
        each = torch.ones_like(blocks.masks)
        every = torch.ones_like(masked)
        return BlockView(
            columns=torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens),
            tokens=tokens,
            masked=masked,
            block=every,
            known=every,
            fixed=blocks.fixed,
            length=each,  # and the three below, and prompts: nobody reads them
            prompt_length=each,
            num_slots=each,
            step=each,
            block_step=blocks.steps,
            block_masks=blocks.masks,
            num_blocks=each,
            fresh=blocks.forwards == 0,
            prompts=each,
            layout=self._layout(*tokens.shape),
            noise=Silence(),
            state=blocks.state,
        )

    def _layout(self, num_rows: int, width: int) -> Layout:
        return Layout(
            num_rows=num_rows,
            num_columns=width,
            block_length=width,
            mask_token_id=self.mask_token_id,
            fill_token_id=self.mask_token_id,  # no row is finished here
            eos_token_ids=(),
            lengths=(width,) * num_rows,
            kept=(width,) * num_rows,
            num_slots=width,
            window_length=width,
            keep_history=self.scheduler.can_revise,
        )


def check_decision(decision: Decision) -> None:
    """Raises NotHostedError for a decision about more than the tokens of a block."""
    about = {
        "block_end": "it ends blocks elsewhere than the engine does",
        "length": "it cuts rows off, whose length is the engine's",
        "gap": "its gap grows and shrinks, and the engine's rows keep their length",
        "variants": "it compares several drafts of a row, and the engine has one",
    }
    for name, reason in about.items():
        if getattr(decision, name) is not None:
            raise NotHostedError(reason)


def _moved(blocks: Blocks, decision: Decision, active: Tensor) -> Blocks:
    """Returns what is carried on; blocks that took no part keep what they had."""
    more = active.long() if decision.num_steps is None else decision.num_steps * active
    held, state = blocks.held, blocks.state
    if decision.hold is not None:
        held = torch.where(active, decision.hold, held)
    if decision.state is not None or decision.replaced is not None:
        state = merged(state, decision.state, decision.replaced, active)
    steps, forwards = blocks.steps + more, blocks.forwards + active
    return replace(blocks, steps=steps, forwards=forwards, held=held, state=state)
