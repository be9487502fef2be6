"""d2Cache: masks near decoded text, what has changed, and what attention rests on are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.cache.base import Cache, Candidates, Canvas, KVStore, ModelSpec, Progress, StepPlan
from dllm.cache.passes import chosen_columns, every_column, predictors
from dllm.models.layer_policies import KeptWeights, attention_rollout
from dllm.options import Count, CountOrNone, Share, Width
from dllm.schedulers.certainty_density import decoded_share
from dllm.state.candidates import rank


@dataclass(frozen=True)
class D2Cache(Cache):
    """Feeds `masks` masks, what changed since it was fed, and the share `rollout` of the attention.

    Masks go by confidence times the share of decoded text nearby (`sigma` columns wide), those of
    the block first, then those up to the end of the block in which their number is reached. Of
    all other columns the ones are fed that got most attention in the last pass, up to `rollout` of
    what these columns got, and one at least. So is what lies between two fed columns at most `gap`
    apart. Only the first pass feeds everything, and gives logits of all masks (slots times
    vocabulary), of which the confidence is kept. The authors decode with scheduler
    `certainty_density` in one block.

    Their code ranks masks by the confidences of the first pass for ever: the ones that come later
    go to a copy, under a condition that is never true. Here the last confidence counts. They also
    fill rows up to the same number of columns; here a row does not depend on its batch.
    """

    masks: Count = 32
    rollout: Share = 0.1  # of the attention that columns got which are not fed for another reason
    sigma: Width = 10.0  # columns
    gap: CountOrNone = 4  # columns

    source = "arXiv 2509.23094; Kamichanw/d2Cache src/cache/d2cache.py"
    names_columns = True
    lockstep = False
    watches = True
    presets = {
        "certainty": {"gap": 0},  # in one block, with scheduler `certainty_density`
        "blocks": {"gap": 4},
    }

    def check(self, spec: ModelSpec) -> None:
        if spec.attention != "full":
            raise ValueError(
                "cache 'd2cache' refreshes columns on both sides of the block, and in a model with "
                f"{spec.attention} attention none needs it: use 'block_causal' or 'sub_block'"
            )

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        real = (canvas.numbers < canvas.length[:, None]) & canvas.active[:, None]
        if canvas.cache_state is None:
            return real
        fed = predictors(self._likely(canvas), spec) | (canvas.tokens != canvas.cache_state.tokens)
        if canvas.layout.whole_block:
            fed = fed | predictors(canvas.block, spec)
        fed = fed & real
        important = self._important(canvas.cache_state.importance, real & ~fed)
        return real & self._closed(fed | important)

    def admits(self, progress: Progress) -> bool:
        return not progress.unfinished  # the first pass of all rows is one of its own

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        if canvas.cache_state is None:
            plan = every_column(canvas, spec, store=True, width=progress.length)
            wanted, most = canvas.masked, canvas.layout.num_slots
        else:
            plan = chosen_columns(self.fed(canvas, spec), canvas, progress, spec)
            wanted, most = self._likely(canvas), self.masks
        plan = replace(plan, policy=KeptWeights())
        if canvas.layout.width >= canvas.layout.num_slots:  # the window shows all of them
            return plan
        beyond = torch.arange(wanted.shape[1], device=wanted.device) > canvas.columns()[:, -1:]
        return _with_logits_of(wanted & beyond, most, plan, spec)

    def watch(
        self,
        canvas: Canvas,
        plan: StepPlan,
        store: KVStore | None,
        candidates: Candidates,
        further: Candidates | None,
    ) -> AttentionHistory:
        if store is None or not store.weights:
            raise ValueError(
                "the cache goes by attention weights, and the model left none in `store.weights`: "
                "load the checkpoint with dllm.load, or use another cache"
            )
        layout, columns = canvas.layout, plan.positions
        keys = canvas.numbers[: layout.num_columns]
        # Guidance runs each row a second time behind the first; shadows are fed behind the columns.
        weights = [w[: layout.num_rows, : columns.shape[1]] for w in store.weights]
        importance = attention_rollout(weights, columns, keys < canvas.length[:, None])
        fed = torch.zeros_like(canvas.fixed).scatter(1, columns, True)
        before = canvas.cache_state or no_history(canvas.tokens)
        history = before.after(fed, canvas.tokens, importance)
        history = history.judged(canvas.columns(), candidates.confidence, plan.known)
        if further is None:
            return history
        assert plan.policy is not None
        assert plan.policy.further is not None
        return history.judged(plan.policy.further, further.confidence)

    def _likely(self, canvas: Canvas) -> Tensor:
        """Returns the masks that are fed for their own sake, (B, C) bool."""
        assert canvas.cache_state is not None
        masked, length = canvas.masked, canvas.layout.block_length
        enough = masked.cumsum(1) >= self.masks
        last = torch.where(enough.any(1), enough.int().argmax(1), masked.shape[1])
        behind = (last - canvas.block_end).div(length, rounding_mode="floor") + 1
        end = canvas.block_end + behind.clamp(min=0) * length
        nearby = masked & (canvas.numbers < end[:, None])
        score = canvas.cache_state.confidence * self._density(canvas)
        first = nearby & canvas.block
        later = rank(score, nearby & ~canvas.block) + first.sum(1, keepdim=True)
        place = torch.where(first, rank(score, first), later)
        return nearby & (place < self.masks)

    def _density(self, canvas: Canvas) -> Tensor:
        """Returns how much of the text around each slot is decoded, (B, C); elsewhere 0."""
        slots = torch.arange(canvas.layout.num_slots, device=canvas.tokens.device)
        columns = canvas.prompt_length[:, None] + slots
        # Rows with less slots and a longer prompt: theirs would end behind the canvas.
        last = canvas.tokens.shape[1] - 1
        beyond, columns = columns > last, columns.clamp(max=last)
        decoded = (~canvas.masked).gather(1, columns) & ~beyond & (columns < canvas.length[:, None])
        offset, count = slots.expand_as(columns), canvas.length - canvas.prompt_length
        share = decoded_share(decoded, offset, count, self.sigma, torch.float32)
        empty = torch.zeros_like(canvas.tokens, dtype=share.dtype)
        return empty.scatter_add(1, columns, share.masked_fill(beyond, 0))

    def _important(self, importance: Tensor, others: Tensor) -> Tensor:
        """Returns which of the `others` (B, C) bool got most attention, (B, C) bool."""
        if self.rollout == 1:  # whatever rounding makes of the sum
            return others
        share = F.pad(importance, (0, others.shape[1] - importance.shape[1])).double()
        got = torch.where(others, share, 0)
        place = rank(got, others)
        order = place.argsort(1)
        total = got.gather(1, order).cumsum(1) / got.sum(1, keepdim=True).clamp(min=1e-9)
        return others & ((total.gather(1, place) <= self.rollout) | (place == 0))

    def _closed(self, fed: Tensor) -> Tensor:
        """Returns the columns `fed` (B, C) bool with the narrow gaps between them."""
        columns = torch.arange(fed.shape[1], device=fed.device)
        far = fed.shape[1] + self.gap
        before = torch.where(fed, columns, -far).cummax(1).values
        after = torch.where(fed, columns, 2 * far).flip(1).cummin(1).values.flip(1)
        return fed | (after - before <= self.gap)


@dataclass(frozen=True)
class AttentionHistory:
    """Tokens, confidence and importance of each column in the passes so far."""

    tokens: Tensor  # (B, C) int64 what each column held when it was last fed
    confidence: Tensor  # (B, C) float32 of the token that was last proposed there, 0 before that
    importance: Tensor  # (B, K) float32 attention that each column got in the last pass

    def after(self, fed: Tensor, tokens: Tensor, importance: Tensor) -> AttentionHistory:
        """Returns what is known after a pass that fed the columns `fed` (B, C) bool."""
        return replace(self, tokens=torch.where(fed, tokens, self.tokens), importance=importance)

    def judged(
        self, columns: Tensor, confidence: Tensor, known: Tensor | None = None
    ) -> AttentionHistory:
        """Returns the same with the confidence (B, n) of some columns (B, n), where known."""
        confidence = confidence.to(self.confidence.dtype).nan_to_num()
        if known is not None:
            confidence = torch.where(known, confidence, self.confidence.gather(1, columns))
        return replace(self, confidence=self.confidence.scatter(1, columns, confidence))


def no_history(tokens: Tensor) -> AttentionHistory:
    """Returns the state before the first pass over a canvas (B, C)."""
    blank = torch.zeros_like(tokens, dtype=torch.float32)
    return AttentionHistory(tokens.clone(), blank, blank)


def _with_logits_of(wanted: Tensor, most: int, plan: StepPlan, spec: ModelSpec) -> StepPlan:
    """Returns the plan that gives logits of the columns `wanted` (B, C) bool too, `most` a row.

    Rows that want fewer ask for the last spare column, of which nobody reads anything.
    """
    order = (~wanted).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    extra = torch.where(wanted.gather(1, order), order, wanted.shape[1] - 1)
    number = torch.arange(plan.positions.shape[1], device=wanted.device).expand_as(plan.positions)
    fed_at = torch.zeros_like(wanted, dtype=torch.int64).scatter(1, plan.positions, number)
    rows = fed_at.gather(1, extra - spec.logit_shift)
    rows = torch.cat([plan.logit_rows, rows], 1)
    return replace(plan, logit_rows=rows, policy=KeptWeights(further=extra))
