"""How a scheduler's state goes from a step to the next, and rows that took no part keep theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# What a scheduler carries between steps: tensors with one entry a row, (B, ...).
State = Mapping[str, Tensor]
Places = Mapping[str, "Replaced"]


@dataclass(frozen=True)
class Replaced:
    """The places of a large state (B, n, ...) that a step gives new values; others are not copied.

    Of a place that is named twice in a row one of the values is kept, any.
    """

    places: Tensor  # (B, w) int64
    values: Tensor  # (B, w, ...) in the state's dtype

    def write(self, old: Tensor, active: Tensor | None = None) -> Tensor:
        """Writes into a state (B, n, ...) in place, and returns it.

        Rows that are not `active` (B,) bool keep theirs; None: all are.
        """
        old, first = old.contiguous(), torch.arange(len(old), device=old.device)[:, None]
        at, values = (first * old.shape[1] + self.places).flatten(), self.values.flatten(0, 1)
        flat = old.flatten(0, 1)
        if active is not None:
            own = active[:, None].expand_as(self.places).reshape(-1, *[1] * (values.ndim - 1))
            values = torch.where(own, values, flat.index_select(0, at))
        flat.index_copy_(0, at, values)
        return old


def merged(old: State, new: State | None, places: Places | None, active: Tensor) -> State:
    """Returns the state of rows that took part in a step (B,) bool; the others keep theirs.

    Nothing is written into the old state.
    """
    own = {name: value.clone() if name in (places or ()) else value for name, value in old.items()}
    return written(own, new, places, active)


def written(
    old: State, new: State | None, places: Places | None, active: Tensor | None = None
) -> State:
    """Returns the same, and writes what is replaced into the old state; None: all took part."""

    def of(name: str, value: Tensor) -> Tensor:
        if active is None:
            return value
        return torch.where(active.view(-1, *[1] * (value.ndim - 1)), value, old[name])

    whole = old if new is None else {name: of(name, value) for name, value in new.items()}
    parts = {} if places is None else places
    return {**whole, **{name: some.write(old[name], active) for name, some in parts.items()}}
