"""What counts the work of a pass."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


class GroupedFlops(FlopCounterMode):
    """Counts the grouped product too, which torch's counter does not know."""

    def __init__(self) -> None:
        grouped = torch.ops.aten._grouped_mm
        super().__init__(display=False, custom_mapping={grouped: self._flops})

    @staticmethod
    def _flops(rows: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(2 * rows[0] * rows[1] * weights[2])
