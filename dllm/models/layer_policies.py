"""What single caches ask of every layer: its attention, fewer keys, or a part of the columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.models.layers import Attention, Block, Fed, Memory, Rotation, rows_of
from dllm.models.transformer import Transformer
from dllm.state.candidates import rank
from dllm.state.plan import LayerPolicy, Saving, StepPlan
from dllm.state.store import KVStore

_ROUNDING = 8  # eps of two unit vectors' distance, a few for each that is normalised


@dataclass(frozen=True)
class KeptWeights(LayerPolicy):
    """Leaves the attention of every layer, mean over heads, in `store.weights`."""

    further: Tensor | None = None  # (B, E) int64 columns whose logits follow those of the window

    keeps_weights: ClassVar[bool] = True

    def of_rows(self, rows: Tensor) -> KeptWeights:
        return self if self.further is None else replace(self, further=self.further[rows])


def attention_rollout(weights: Sequence[Tensor], columns: Tensor, real: Tensor) -> Tensor:
    """Returns how much of the last layer's states comes from each column, (B, K) float32.

    `weights` are the attention (B, Q, K) of the fed columns (B, Q) int64 in each layer;
    `real` (B, K) bool are the columns that count. This is the column sum of attention rollout
    (arXiv 2005.00928): the product over layers of A/2 + I/2, with the identity in rows that were
    not fed. Taken from the last layer down it needs no matrix of K x K, but all the layers at once.
    """
    flow = real.float()
    inside = columns < real.shape[1]
    at = columns.clamp(max=real.shape[1] - 1)
    for attention in reversed(weights):
        share = torch.where(inside, flow.gather(1, at), 0) / 2
        shares = attention.to(flow.device, flow.dtype)[..., : real.shape[1]]
        flow = flow.scatter_add(1, at, -share) + (share[:, None] @ shares)[:, 0]
    return flow


@dataclass(frozen=True)
class KeyRetention(LayerPolicy):
    """Chooses the keys that a layer goes on seeing by what the block's queries make of them.

    The importance of a key is its product with the mean query, averaged over heads; neighbours
    share the larger value, so that what is kept comes in runs (arXiv 2508.02558).
    """

    queries: Tensor  # (B, Q) bool: fed columns whose mean query ranks
    candidates: Tensor  # (B, K) bool: keys that are ranked; all others stay visible
    count: Tensor  # (B,) int64 how many of them stay
    kernel: int  # candidates that share their largest importance, odd

    def choose(
        self, queries: Tensor, keys: Tensor, whole: Callable[[Tensor], Tensor] = lambda mean: mean
    ) -> Tensor:
        """Returns which keys stay visible, (B, K) bool.

        `queries` (B, Q, H, D) and `keys` (B, K, Hkv, D) are those of one layer after RoPE. `whole`
        makes the mean over all heads of that over these.
        """
        # Shadows are fed behind the canvas columns: they do not ask, and are not ranked.
        candidates = _widened(self.candidates, keys.shape[1]).to(keys.device)
        dtype = torch.promote_types(queries.dtype, torch.float32)
        asking = _widened(self.queries, queries.shape[1]).to(queries.device)[..., None, None]
        mean = torch.where(asking, queries, 0).to(dtype).sum(1) / asking.sum(1).clamp(min=1)
        groups = mean.unflatten(1, (keys.shape[2], -1)).mean(2) / keys.shape[2]
        importance = whole(torch.einsum("bhd,bkhd->bk", groups, keys.to(dtype)))
        # Candidates on either side of the block become neighbours.
        order = (~candidates).to(torch.uint8).sort(dim=1, stable=True).indices
        among = candidates.gather(1, order)
        packed = importance.gather(1, order).masked_fill(~among, -torch.inf)
        pooled = F.max_pool1d(packed[:, None], self.kernel, 1, self.kernel // 2)[:, 0]
        chosen = (rank(pooled, among) < self.count.to(keys.device)[:, None]) & among
        return torch.zeros_like(candidates).scatter(1, order, chosen) | ~candidates

    def visible(
        self, store: KVStore, layer: int, queries: Tensor, keys: Tensor, mask: Tensor | None
    ) -> Tensor | None:
        store.keep(layer, self.choose(queries, keys, store.mean_over_heads))
        return mask

    def of_rows(self, rows: Tensor) -> KeyRetention:
        queries, candidates = self.queries[rows], self.candidates[rows]
        return replace(self, queries=queries, candidates=candidates, count=self.count[rows])


def _widened(chosen: Tensor, width: int) -> Tensor:
    """Returns (B, width) bool, False where `chosen` (B, n) bool ends."""
    return F.pad(chosen, (0, width - chosen.shape[1]))


class RetainedKeys(LayerPolicy):
    """Hides the keys that a layer has not chosen in the last pass that chose."""

    whole_layer: ClassVar[bool] = False

    def visible(
        self, store: KVStore, layer: int, queries: Tensor, keys: Tensor, mask: Tensor | None
    ) -> Tensor | None:
        kept = store.kept_keys(layer, *keys.shape[:2])[:, None]
        return kept if mask is None else mask & kept


@dataclass(frozen=True)
class FeatureReuse(LayerPolicy):
    """Computes some columns in every layer but the first, and takes the rest as they were.

    What attention and feed-forward gave a column is added to its state again. The first layer
    computes all columns: that is where a new token enters.
    """

    fresh: Tensor  # (B, Q) bool: columns that are computed
    drifting: Tensor  # (B, Q) bool: of these, the ones whose values changed most are computed too
    count: Tensor  # (B, 1) int64 how many of them, or (B, n) in each layer behind the first
    num_fresh: int  # the most `fresh` columns of a row
    num_compared: int  # the most `drifting` columns of a row; 0: none is chosen
    num_chosen: tuple[int, ...]  # the most that `count` is, as many numbers
    notes_change: bool = False  # leaves in `store.change` how much the drifting ones have changed

    def count_in(self, layer: int, num_layers: int) -> Tensor:
        """Returns how many drifting columns of each row a layer computes, (B,) int64."""
        return self.count[:, layer - 1 if self.count.shape[1] > 1 else 0]

    def most_in(self, layer: int, num_layers: int) -> int:
        """Returns the most that `count_in` has of a row."""
        return self.num_chosen[layer - 1 if len(self.num_chosen) > 1 else 0]

    def num_computed(self, num_fed: int, num_chosen: int) -> int:
        """Returns how many of the fed columns, shadows included, a layer computes at most."""
        behind = num_fed - self.fresh.shape[1]
        return min(self.num_fresh + behind + num_chosen, num_fed)

    def compared(
        self, layer: ReusingLayer, states: Tensor, at: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns what columns `at` (B, n) are compared by, as it was and as it is, (B, n, k).

        `states` (B, n, hidden_size) are their normed ones. The new is kept, of those that are real.
        """
        values = layer.attention.values(states)
        old = layer.store.exchange(layer.layer, layer.slots(at, real), values)
        return layer.store.all_heads(old).flatten(2), layer.store.all_heads(values).flatten(2)

    def saving(self, num_fed: int) -> Saving:
        computed = (self.num_computed(num_fed, count) for count in self.num_chosen)
        return Saving(tuple(num_fed - count for count in computed), self.num_compared)

    def of_rows(self, rows: Tensor) -> FeatureReuse:
        fresh, drifting, count = self.fresh[rows], self.drifting[rows], self.count[rows]
        return replace(self, fresh=fresh, drifting=drifting, count=count)


def partly_computed(network: Transformer, tokens: Tensor, plan: StepPlan, store: KVStore) -> Tensor:
    """Returns logits (B, w, V) of a pass with `FeatureReuse` (arXiv 2506.06295).

    The states of all columns are summed up again in each layer: only attention, feed-forward and
    their outputs are saved, so the store holds two states a column and layer besides K/V.
    """
    if len({keys.device for keys in store.keys}) > 1:
        raise ValueError(
            "caches that compute a part of the columns in each layer ('dllm_cache', "
            "'dynamic_dllm', 'spa') need all layers on one device: load the model on one, or use "
            "another cache"
        )
    assert plan.stored is not None
    store.begin(plan.stored)
    x = network.embedding(tokens)
    for layer, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        x = ReusingLayer(network, block, layer, plan, store).run(x)
    return network.logits(network.norm(rows_of(x, plan.logit_rows)))


@dataclass(frozen=True)
class ReusingLayer:
    """One layer of a pass with `FeatureReuse`."""

    network: Transformer
    block: Block
    layer: int
    plan: StepPlan
    store: KVStore

    @property
    def reuse(self) -> FeatureReuse:
        """What the pass computes."""
        assert isinstance(self.plan.policy, FeatureReuse)
        return self.plan.policy

    @property
    def attention(self) -> Attention:
        """The layer's attention."""
        assert isinstance(self.block.attention, Attention)
        return self.block.attention

    def run(self, x: Tensor) -> Tensor:
        """Returns the layer's states (B, Q, hidden_size) from those before it."""
        plan, block = self.plan, self.block
        normed = block.attention_norm(x)
        at, real = self._computed(normed)
        mask = plan.attention_mask
        if mask is not None and mask.shape[1] > 1:
            mask = rows_of(mask, at)
        memory = self.memory(at, real)
        mixed = block.attention(rows_of(normed, at), Fed(self.rotation(at), mask), memory)
        x = x + self.remembered(2 * self.layer, at, real, mixed)[:, : x.shape[1]]
        given = block.feed_forward(block.feed_forward_norm(rows_of(x, at)))
        return x + self.remembered(2 * self.layer + 1, at, real, given)[:, : x.shape[1]]

    def rotation(self, at: Tensor) -> Rotation:
        """Returns the RoPE tables of fed columns `at` (B, n)."""
        return self.network.rotation(self.plan.positions.gather(1, at))

    def memory(self, at: Tensor, real: Tensor) -> Memory:
        """Returns what stores keys and values of columns `at` (B, n), those that are real."""
        return Memory(self.store, self.layer, self.plan, self.slots(at, real))

    def slots(self, at: Tensor, real: Tensor) -> Tensor:
        """Returns where the keys of columns `at` (B, n) are stored, those that are real."""
        assert self.plan.stored is not None
        return self.store.slots(self.plan.stored.gather(1, at).where(real, -1))

    def held(self, place: int, states: Tensor) -> Tensor:
        """Returns what is remembered of all columns under a number, (B, C, d); 0 at first."""
        shape, features = self.store.shape, self.store.features
        if place not in features:
            size = (shape.num_rows, shape.num_columns, states.shape[-1])
            features[place] = states.new_zeros(size)
        return features[place][:: shape.num_rows // states.shape[0]]

    def remembered(self, place: int, at: Tensor, real: Tensor, states: Tensor) -> Tensor:
        """Keeps states (B, n, d) at columns (B, n) where real; returns all of a row, (B, C, d)."""
        held, index = self.held(place, states), at[..., None].expand_as(states)
        held.scatter_(1, index, torch.where(real[..., None], states, held.gather(1, index)))
        return held

    def _computed(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the fed columns (B, n) int64 that are computed, and which of them count."""
        reuse, width = self.reuse, normed.shape[1]
        # Shadows stand behind the canvas columns, and are never reused.
        behind = width - reuse.fresh.shape[1]
        fresh = F.pad(reuse.fresh, (0, behind), value=True)
        if self.layer == 0:
            return _packed(torch.ones_like(fresh), width)
        if reuse.num_compared:
            fresh = fresh | self._drifted(normed, F.pad(reuse.drifting, (0, behind)), fresh)
        elif reuse.notes_change:
            self.store.change.append(normed.new_zeros(len(normed), dtype=torch.float64))
        most = reuse.most_in(self.layer, len(self.network.blocks))
        return _packed(fresh, reuse.num_computed(width, most))

    def _drifted(self, normed: Tensor, drifting: Tensor, fresh: Tensor) -> Tensor:
        """Returns the columns that changed most of those that are not fresh, (B, Q) bool."""
        reuse = self.reuse
        at, real = _packed(drifting, reuse.num_compared)
        old, new = (
            F.normalize(v.to(torch.promote_types(v.dtype, torch.float32)), dim=-1)
            for v in reuse.compared(self, rows_of(normed, at), at, real)
        )
        # Half the squared distance is 1 - cosine, without its cancellation. One that rounding alone
        # makes, which differs with the rows beside, is none: those columns have not changed.
        moved = (old - new).square().sum(-1)
        moved = moved.masked_fill(moved < (_ROUNDING * torch.finfo(moved.dtype).eps) ** 2, 0)
        if reuse.notes_change:
            total = torch.where(real, moved, 0).sum(1, dtype=torch.float64) / 2
            self.store.change.append(total / real.sum(1).clamp(min=1))
        among = real & ~fresh.gather(1, at)
        count = reuse.count_in(self.layer, len(self.network.blocks))
        chosen = (rank(moved, among) < count[:, None]) & among
        return torch.zeros_like(drifting).scatter(1, at, chosen)


def _packed(chosen: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Returns the chosen columns first, (B, most) int64, and which of them were chosen."""
    order = (~chosen).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    return order, chosen.gather(1, order)
