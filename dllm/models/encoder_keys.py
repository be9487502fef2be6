"""Keys and values of text that DiffusionGemma's encoder read, as transformers' class takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sight:
    """The columns of a pass, and what they see."""

    columns: Tensor  # (B, Q) int64, also their positions
    masks: Mapping[str, Tensor]  # of each kind of layer, (B, 1, 1 or Q, K) bool, True: seen


@dataclass
class LayerKeys:
    """What one layer keeps of the text: (B, H, S + 1, D) each, of which the last is scratch."""

    all_keys: Tensor
    all_values: Tensor
    num_shown: int = 0  # slots that the next pass sees

    @property
    def keys(self) -> Tensor:
        return self.all_keys[:, :, : self.num_shown]

    @property
    def values(self) -> Tensor:
        return self.all_values[:, :, : self.num_shown]


@dataclass
class EncoderKeys:
    """Keys and values of the text before the blocks, in slots of each row, as transformers' cache.

    A layer has as many slots S as a block sees columns before it, and column c lies in slot c mod
    S: where layers see a window, columns take the slots of those that left it.
    """

    num_slots: Mapping[str, int]  # of each kind of layer
    kinds: tuple[str, ...]  # of each layer
    layers: list[LayerKeys] = field(default_factory=list)  # of which the encoder read something
    _written: dict[str, Tensor] = field(default_factory=dict)  # slots (B, n) that a pass writes

    is_compileable = False  # transformers asks: keys of a block are put behind those that are kept

    @property
    def num_bytes(self) -> int:
        """The bytes of all slots."""
        return sum(one.all_keys.nbytes + one.all_values.nbytes for one in self.layers)

    def reading(self, columns: Tensor, real: Tensor, known: Tensor, reach: int) -> Sight:
        """Returns what a pass of the encoder sees, which is at columns (B, n) and keeps them.

        Those that are not `real` (B, n) pad a row. The columns before `known` (B,) were read
        before, none of them from `reach` on.
        """
        self._show(reach)
        end = torch.where(real, columns + 1, 0).amax(1, keepdim=True)
        itself = torch.eye(columns.shape[1], dtype=torch.bool, device=columns.device)
        causal = real[:, None] & (columns[:, None] <= columns[..., None])
        masks = {}
        for kind, count in self.num_slots.items():
            kept = real & (columns >= end - count)
            self._written[kind] = torch.where(kept, columns % count, count)
            first = columns[..., None] - count  # with itself, a window has a column more than slots
            held = self._held(kind, known)[:, None]
            before = (held >= 0) & (held >= first)
            beside = causal & (columns[:, None] >= first) | itself  # padding sees something, too
            masks[kind] = torch.cat([before, beside], 2)[:, None]
        return Sight(columns, masks)

    def denoising(self, columns: Tensor, length: Tensor, reach: int) -> Sight:
        """Returns what blocks at columns (B, W) see: all that is kept, and themselves.

        Columns from `length` (B,) on pad a row; nothing was read from `reach` on.
        """
        self._show(reach)
        block, masks = columns < length[:, None], {}
        for kind in self.num_slots:
            held = self._held(kind, columns[:, 0]) >= 0
            masks[kind] = torch.cat([held, block], 1)[:, None, None]
        return Sight(columns, masks)

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """Keeps keys and values (B, H, n, D) of a pass, and returns them behind those before it."""
        kind = self.kinds[layer]
        if layer == len(self.layers):
            size = (*keys.shape[:2], self.num_slots[kind] + 1, keys.shape[3])
            self.layers.append(LayerKeys(keys.new_zeros(size), values.new_zeros(size)))
        held = self.layers[layer]
        seen = torch.cat([held.keys, keys], 2), torch.cat([held.values, values], 2)
        at = self._written[kind].to(keys.device)[:, None, :, None].expand_as(keys)
        held.all_keys.scatter_(2, at, keys)
        held.all_values.scatter_(2, at, values)
        return seen

    @property
    def num_keys(self) -> int:
        """The most slots of a row that a layer shows the next pass."""
        return max((one.num_shown for one in self.layers), default=0)

    def _show(self, reach: int) -> None:
        for number, layer in enumerate(self.layers):
            layer.num_shown = min(self.num_slots[self.kinds[number]], reach)

    def _held(self, kind: str, known: Tensor) -> Tensor:
        """Returns which column lies in each slot that is seen, (B, K) int64; below 0: none."""
        count, last = self.num_slots[kind], known[:, None] - 1
        shown = self.layers[self.kinds.index(kind)].num_shown if self.layers else 0
        slots = torch.arange(shown, device=known.device)
        return last - (last - slots) % count
