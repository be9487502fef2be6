"""A K/V store of 8 bits: a scale for each head of each column, widened again where it is read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm.state.store import KVStore, StoreShape

_MOST = 127  # of eight bits, the same on both sides of zero


class RoundedStore(KVStore):
    """Holds keys (after RoPE) and values as integers, half of what 16 bits take.

    Approximate: a key or value is off by at most 1/254 of the largest of its head and column. What
    a pass has just fed is read as it was rounded, too, so that a row is the same whichever pass
    wrote it and whoever lies beside it. Integers and scales of NaN or infinity widen to NaN.
    """

    def __init__(
        self, shape: StoreShape, dtype: torch.dtype, layer_devices: Sequence[torch.device]
    ) -> None:
        self.key_scales: list[Tensor] = []  # of each layer (slots, H)
        self.value_scales: list[Tensor] = []
        super().__init__(shape, torch.int8, layer_devices)
        self.dtype = dtype  # of what is written and read
        slots, kind = shape.num_rows * shape.num_columns + 1, scale_dtype(dtype)
        size = (slots, shape.num_kv_heads)
        for scales in (self.key_scales, self.value_scales):
            scales += [torch.zeros(size, dtype=kind, device=device) for device in layer_devices]
        self._note_extent()

    def exchange(self, layer: int, slots: Tensor, values: Tensor) -> Tensor:
        stored, scales = self.values[layer], self.value_scales[layer]
        old = widened(stored[slots], scales[slots], self.dtype)
        self._put(stored, scales, slots.flatten(), values.flatten(0, 1))
        return old

    def write(
        self, layer: int, slots: Tensor, keys: Tensor, values: Tensor, num_keys: int
    ) -> tuple[Tensor, Tensor]:
        rows, count = slots.shape
        flat = slots.flatten().to(self.keys[layer].device)
        views = []
        for stored, scales, new in (
            (self.keys[layer], self.key_scales[layer], keys),
            (self.values[layer], self.value_scales[layer], values),
        ):
            self._put(stored, scales, flat, new[:, :count].flatten(0, 1))
            whole, scale = (self.first_columns(held, rows, num_keys) for held in (stored, scales))
            view = widened(whole, scale, self.dtype)
            views.append(view if new.shape[1] == count else torch.cat([view, new[:, count:]], 1))
        return views[0], views[1]

    def _put(self, stored: Tensor, scales: Tensor, slots: Tensor, new: Tensor) -> None:
        """Stores keys or values (n, H, D) at slots (n,)."""
        whole, scale = rounded(new)
        stored.index_copy_(0, slots, whole)
        scales.index_copy_(0, slots, scale)

    def _by_slot(self) -> tuple[list[Tensor], ...]:
        return self.keys, self.values, self.key_scales, self.value_scales


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of scales for keys and values of another: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x (..., D) as int8 and its scales (...), the largest magnitude over 127."""
    wide = x.to(scale_dtype(x.dtype))
    scale = wide.abs().amax(-1) / _MOST
    # Of nothing but zeros any scale will do; NaN stays NaN.
    steps = (wide / scale.clamp(min=torch.finfo(wide.dtype).tiny)[..., None]).round()
    return steps.clamp(-_MOST, _MOST).to(torch.int8), scale


def widened(whole: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what integers (..., D) with scales (...) stand for."""
    return (whole * scale[..., None]).to(dtype)
