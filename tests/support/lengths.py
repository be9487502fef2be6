"""Distributions of prompt lengths, in tokens."""

from __future__ import annotations

import random

_DRAW = random.Random(7)
LENGTHS = {
    "uniform": [1 + 7 * row % 60 for row in range(48)],
    "bimodal": [4 if row % 2 else 56 for row in range(48)],
    "one outlier": [5] * 20 + [80] + [5] * 20,
    "all equal": [12] * 40,
    "long tail": [min(3 + int(1.1**row), 90) for row in range(48)],
    "word problems": [_DRAW.randrange(18, 55) for _ in range(100)],
}
CACHES = ("none", "prefix", "dual", "dkv", "d2cache", "dllm_cache", "window_diffusion")


def shuffled(name: str) -> list[int]:
    """Returns the lengths of a distribution in any order."""
    return random.Random(1).sample(LENGTHS[name], len(LENGTHS[name]))
