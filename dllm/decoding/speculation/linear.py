"""Linear self-speculation: a block drafted both ways, read causally, and its right prefix kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dllm.cache import Cache
from dllm.cache.base import FirstToken
from dllm.cache.block_causal import BlockCausalCache, BlockStoreCache
from dllm.cache.none import NoCache
from dllm.cache.passes import causal_context, chosen_columns, columns_from, every_column
from dllm.decoding.passes import Forward, Step
from dllm.decoding.speculation.verifiers.linear import Linear
from dllm.models.config import ModelSpec
from dllm.options import Count
from dllm.state.candidates import Candidates, best
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.progress import Progress
from dllm.state.rows import count_prefix
from dllm.state.window import Decision, StepEvent, Window
from dllm.state.writing import apply


@dataclass(frozen=True)
class CausalStore(BlockStoreCache):
    """The causal passes over a row's last token and what is drafted behind it, keys stored.

    A row that has more to read than its last token, as at its beginning, reads that alone: its
    next token is certain, and what is drafted follows that one.
    """

    prefill_chunk: Count | None = None  # as the cache has it that this one takes the place of
    first_token: FirstToken = "feed"

    source = Linear.source

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        first, count = first_open(canvas), num_fed(canvas)
        start, end = torch.minimum(canvas.clean, first - 1), first - 1 + count
        end = torch.where(canvas.finished, 0, torch.minimum(end, canvas.length))
        return (canvas.numbers >= start[:, None]) & (canvas.numbers < end[:, None])

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        return chosen_columns(self.feeds(canvas, spec), canvas, progress, causal(spec))


@dataclass(frozen=True)
class CausalAnew(NoCache):
    """The same passes over all columns up to the drafted ones, with nothing stored."""

    source = Linear.source

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        return every_column(canvas, causal(spec), store=False, width=progress.reach)


def causal_cache(cache: Cache) -> Cache:
    """Returns what plans the passes of left to right decoding in the place of a cache."""
    if isinstance(cache, BlockCausalCache):
        return CausalStore(cache.prefill_chunk, cache.first_token)
    return CausalAnew()


def causal(spec: ModelSpec) -> ModelSpec:
    """Returns the model as it predicts the next token."""
    return replace(spec, attention="causal", logit_shift=1)


def first_open(canvas: Canvas) -> Tensor:
    """Returns each row's first open column, (B,) int64; 0 where there is none."""
    return canvas.masked.int().argmax(1)


def num_fed(canvas: Canvas) -> Tensor:
    """Returns how many columns a pass is fed from a row's last token on, it included, (B,).

    One where nothing is drafted: in rows that wait, too, before they enter the canvas.
    """
    return torch.ones_like(canvas.step) if canvas.drafts is None else canvas.drafts.count


@dataclass(frozen=True)
class _Round:
    """The rows' windows before a round, and the drafts in them."""

    canvas: Canvas
    plan: StepPlan  # of the causal pass
    progress: Progress

    @cached_property
    def open(self) -> Tensor:
        """Which columns of the window wait for a token, (B, W) bool."""
        return self.canvas.open_columns()

    @cached_property
    def steps(self) -> Tensor:
        """The steps before each column's commit if all before it are right, (B, W) int64."""
        before = self.open.cumsum(1) - self.open.long()
        return self.canvas.step[:, None] + before

    @cached_property
    def end(self) -> Tensor:
        """The column behind those that are drafted, (B,) int64."""
        fed = first_open(self.canvas) - 1 + num_fed(self.canvas)
        return torch.minimum(fed, self.canvas.length)

    @cached_property
    def drafted(self) -> Tensor:
        """Which open columns of the window the causal pass is fed a draft of, (B, W) bool."""
        drafts = self.canvas.columns() < self.end[:, None]
        return self.open & drafts & (num_fed(self.canvas) > 1)[:, None]

    def drafting(self, spec: ModelSpec) -> StepPlan:
        """Returns the pass over the same tokens in which the drafted columns see each other.

        Its keys lie in the store only until the causal pass over the same columns.
        """
        canvas, plan = self.canvas, self.plan
        start, going = first_open(canvas) - 1, num_fed(canvas) > 1
        if plan.stored is not None:
            plan = columns_from(start.clamp(min=0), self.progress.num_variants, canvas, spec)
        end = torch.where(going, self.end, 0)[:, None]
        positions, keys = plan.positions, canvas.numbers[: plan.num_keys]
        mask = causal_context(positions, plan.num_keys, start, end[:, 0])
        rows = canvas.columns() - positions[:, :1]
        return replace(
            plan,
            kind="draft",
            logit_rows=rows.clamp(0, positions.shape[1] - 1),
            attention_mask=mask & (keys < canvas.length[:, None, None]),
            stored=None if plan.stored is None else torch.where(positions < end, positions, -1),
            known=None,
        )


@dataclass(frozen=True)
class LinearPasses:
    """A pass that drafts, or some, and one that verifies: what is right goes into the canvas.

    The causal pass gives at each column what it predicts if all before it is right, as if every
    prefix of the draft were a canvas of its own: the steps of decoding token by token are taken
    as long as they lead to one of these. At a temperature both draw with the noise of the step.
    """

    step: Step
    verifier: Linear
    stops: bool  # an end token ends its row

    num_variants = 1

    def __call__(
        self, canvas: Canvas, plan: StepPlan, progress: Progress, forward: Forward
    ) -> StepEvent:
        rows, window = _Round(canvas, plan, progress), canvas.window(plan)
        tokens, num_drafts = canvas.tokens, torch.zeros_like(canvas.step)
        if progress.num_variants > 1:
            tokens, num_drafts = self._draft(rows, forward)
        candidates = self._propose(rows, plan, forward(tokens, plan))
        return self._keep(rows, window, candidates, (tokens, num_drafts))

    def _propose(self, rows: _Round, plan: StepPlan, logits: Tensor) -> Candidates:
        """Returns candidates of the window at the steps of its columns."""
        step, columns = self.step, rows.canvas.columns()
        logits = step.processed(logits, columns, rows.canvas)
        return step.sampling.propose(logits, step.noise, columns, rows.steps)

    def _draft(self, rows: _Round, forward: Forward) -> tuple[Tensor, Tensor]:
        """Returns canvas tokens (B, C) with drafts, and the passes that each row's took, (B,)."""
        canvas, plan = rows.canvas, rows.drafting(forward.model.spec)
        # Of a model that has an adapter for its drafts, and for nothing else.
        plan = replace(plan, policy=getattr(forward.model, "drafting", None))
        tokens, columns, left = canvas.tokens.clone(), canvas.columns(), rows.drafted
        num_passes = torch.zeros_like(canvas.step)
        while True:
            found = self._propose(rows, plan, forward(tokens, plan))
            num_passes = num_passes + left.any(1)
            sure = (found.confidence >= self.verifier.threshold) | best(found.confidence, left)
            chosen = left & sure
            drafted = torch.where(chosen, found.token, tokens.gather(1, columns))
            tokens.scatter_(1, columns, drafted)
            left = left & ~chosen
            # A threshold asks after each pass whether another one is needed, as plain decoding.
            if self.verifier.threshold == 0 or not bool(left.any()):
                return tokens, num_passes

    def _keep(
        self,
        rows: _Round,
        window: Window,
        candidates: Candidates,
        fed: tuple[Tensor, Tensor],
    ) -> StepEvent:
        """Writes the drafts that the causal pass agrees with, and its first own token."""
        canvas, (tokens, num_drafts) = rows.canvas, fed
        columns, step = window.columns, canvas.step.clone()
        finite = candidates.confidence < torch.inf  # neither does NaN pass
        agreed = rows.drafted & finite & (candidates.token == tokens.gather(1, columns))
        passed = (~rows.open | agreed).cumprod(1).bool()
        before = torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], 1)
        commit = window.masked & before
        if self.stops:
            ends = (torch.isin(candidates.token, canvas.ends) & commit).cumsum(1)
            ended = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
            commit = commit & (ended == 0)
        left = canvas.masked
        left = left.scatter(1, columns, left.gather(1, columns) & ~commit)
        following = torch.where(left.any(1), left.int().argmax(1), canvas.length)
        right = torch.where(commit, columns, -1).amax(1) + 1
        stored = torch.minimum(columns[:, 0] + passed.sum(1), torch.minimum(rows.end, right))
        stored = torch.where(window.active, stored, canvas.clean)
        decision = Decision(commit, block_end=following)
        event = apply(canvas, replace(window, masked=commit), decision, candidates)
        self._widen(canvas, event.committed.sum(1), (stored, following))
        count_prefix(canvas, event, step, num_drafts, stored)
        return event

    def _widen(self, canvas: Canvas, steps: Tensor, moved: tuple[Tensor, Tensor]) -> None:
        """Sets how many columns each row is fed next, where the last `steps` (B,) were right.

        A row that has more to read than its last token, behind given text, drafts nothing.
        """
        drafts, (stored, following) = canvas.drafts, moved
        assert drafts is not None
        limit, least = drafts.limit, self.verifier.first_window
        doubled, halved = 2 * limit, limit // 2
        wider = torch.where(steps >= drafts.count, doubled, limit)
        wider = torch.where(2 * steps <= drafts.count, halved, wider)
        wider = wider.clamp(least, self.verifier.block)
        limit = torch.where((drafts.count > 1) & (steps > 0), wider, limit)
        count = torch.minimum(limit, canvas.length - following).clamp(min=1)
        drafts.window(limit, torch.where(stored == following - 1, count, 1))
