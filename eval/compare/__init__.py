"""Two ways of decoding, side by side: runs, exact and cached passes, verified and plain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from dllm.settings import Settings


def batches(
    prompts: Sequence[Any], settings: Settings, size: int
) -> Iterator[tuple[int, list[Any], Settings]]:
    """Yields the first number, the prompts and the settings of each batch.

    Both ways then draw the same noise, and a prompt's seed does not depend on its batch.
    """
    seed = settings.seed
    for start in range(0, len(prompts), size):
        batch = list(prompts[start : start + size])
        if isinstance(seed, list):
            seeds = seed[start : start + size]
        else:
            seeds = [(seed or 0) + start + row for row in range(len(batch))]
        yield start, batch, replace(settings, seed=seeds)
