"""Columns compared in a few directions, of which layers compute different shares (SPA-Cache)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from torch import Tensor, nn

from dllm.models.layer_policies import FeatureReuse, ReusingLayer
from dllm.models.layers import Attention
from dllm.state.plan import Saving
from dllm.state.store import KVStore


@dataclass(frozen=True)
class ShareCurve:
    """The share of an answer that each layer computes: two halves of normal curves."""

    most: float  # at `place`; 0: no layer computes any
    place: float  # of the depth
    first: float  # of `most`, where the depth is 0
    last: float  # of `most`, where the depth is 1
    least: float  # share in front of `place`

    def share(self, layer: int, num_layers: int) -> float:
        """Returns the share of one layer."""
        if not self.most:
            return 0.0
        beyond = layer / num_layers - self.place
        if beyond < 0:
            return max(self.most * self.first ** (beyond / self.place) ** 2, self.least)
        return float(self.most * self.last ** (beyond / (1 - self.place)) ** 2)


@dataclass(frozen=True)
class CurveSaving(Saving):
    """What is left out where each layer computes its share of `most` columns besides others."""

    curve: ShareCurve = ShareCurve(0, 0.5, 0.5, 0.5, 0)
    num_fed: int = 0
    num_fresh: int = 0  # shadows included
    most: int = 0

    def left_out(self, num_layers: int) -> int:
        shares = (self.curve.share(1 + at, num_layers + 1) for at in range(num_layers))
        computed = (min(self.num_fresh + int(share * self.most), self.num_fed) for share in shares)
        return sum(self.num_fed - count for count in computed)


@dataclass(frozen=True)
class SingularReuse(FeatureReuse):
    """Compares states in the largest singular directions of the values (arXiv 2602.02544).

    `count` and `num_chosen` are the columns of which each layer computes its share. Where any are
    chosen, all drifting columns get new keys and values.
    """

    curve: ShareCurve = ShareCurve(0, 0.5, 0.5, 0.5, 0)
    rank: int = 1  # directions

    def count_in(self, layer: int, num_layers: int) -> Tensor:
        share = self.curve.share(layer, num_layers)
        return (self.count[:, 0].double() * share).floor().long()

    def most_in(self, layer: int, num_layers: int) -> int:
        return int(self.num_chosen[0] * self.curve.share(layer, num_layers))

    def compared(
        self, layer: ReusingLayer, states: Tensor, at: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.curve.most:
            keys, values = layer.attention.keys_and_values(states)
            rotated = layer.attention.rotate(keys, layer.rotation(at))
            layer.memory(at, real).write(rotated, values)
        place = 2 * len(layer.network.blocks) + layer.layer
        seen = states @ directions(layer.attention, self.rank, states, layer.store)
        index = at[..., None].expand_as(seen)
        old = layer.held(place, seen).gather(1, index)
        layer.remembered(place, at, real, seen)
        return old, seen

    def saving(self, num_fed: int) -> Saving:
        fresh = self.num_fresh + num_fed - self.fresh.shape[1]
        return CurveSaving(
            values=2 * self.num_compared * bool(self.curve.most),
            numbers=self.num_compared * self.rank,
            curve=self.curve,
            num_fed=num_fed,
            num_fresh=fresh,
            most=self.num_chosen[0],
        )


_Key = tuple[int, torch.dtype, torch.device]  # of directions that were found: their number
_FOUND: WeakKeyDictionary[Attention, dict[_Key, Tensor]] = WeakKeyDictionary()


def directions(attention: Attention, rank: int, states: Tensor, store: KVStore) -> Tensor:
    """Returns the `rank` largest singular directions of a layer's values, (hidden_size, r).

    Each is as long as its singular value, and where there are fewer, r is less than `rank`. They
    are found once for a layer, with the dtype and device of `states`, and kept as long as it is.
    """
    found, key = _FOUND.setdefault(attention, {}), (rank, states.dtype, states.device)
    if key not in found:
        with torch.inference_mode(mode=False), torch.no_grad():  # all later calls have them
            found[key] = _found(attention, rank, states, store)
    return found[key]


def _found(attention: Attention, rank: int, states: Tensor, store: KVStore) -> Tensor:
    given: Any = attention.qkv if attention.config.fused_qkv else attention.v
    weight = given.weight if isinstance(given, nn.Linear) else given.widened()
    own = rearrange(
        weight[-attention.kv_width :], "(h e) d -> 1 d h e", e=attention.config.head_dim
    )
    wide = torch.promote_types(states.dtype, torch.float32)
    made = store.all_heads(own).flatten(2)[0].to(states.device, wide)  # (hidden_size, values)
    # Eigenvectors of its products with itself, a smaller matrix, are the right singular ones.
    vectors = torch.linalg.eigh(made.mT @ made).eigenvectors
    return (made @ vectors[:, -rank:]).to(states.dtype)
