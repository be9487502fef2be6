"""Two ways of decoding, side by side: runs, exact and cached passes, verified and plain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dllm.models.model import DenoisingModel
from dllm.options import Count, Options
from dllm.settings import Settings


@dataclass(frozen=True)
class Prompted(Options):
    """Prompts that are decoded in two ways."""

    model: DenoisingModel
    prompts: Sequence[Any]
    settings: Settings
    batch_size: Count = 1

    def batches(self) -> Iterator[tuple[int, list[Any], Settings]]:
        """Yields the first number, the prompts and the settings of each batch.

        Both ways then draw the same noise, and a prompt's seed does not depend on its batch.
        """
        seed, size = self.settings.seed, self.batch_size
        asked = self.settings.constraint
        for start in range(0, len(self.prompts), size):
            batch = list(self.prompts[start : start + size])
            if isinstance(seed, list):
                seeds = seed[start : start + size]
            else:
                seeds = [(seed or 0) + start + row for row in range(len(batch))]
            held = asked[start : start + size] if isinstance(asked, list) else asked
            yield start, batch, replace(self.settings, seed=seeds, constraint=held)
