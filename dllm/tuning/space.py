"""The settings that a search may try: where it begins, and the neighbours of what leads.

No Optuna: its samplers model one number of each trial by itself, while a race knows all settings
on the same problems and lets their differences decide; and its storage does not keep the state of
a sampler, so that a search that was killed would go on with other draws. Neighbours of the front,
in an order drawn by a seed that is named after the round, are the same after every restart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

BLOCKS = (8, 16, 32, 64, 128, 256)
BATCHES = (8, 16, 32, 64, 128)
VERIFIERS = (None, "freedave:2", "freedave:4", "freedave:8", "ssd:draft_length=4")
CACHES = ("none", "prefix", "dual")
# Schedulers with their option that trades accuracy for cost: its values at the beginning, and
# whether it is a probability, whose distance to 1 is what matters.
KNOBS: dict[str, tuple[str, tuple[float, ...], bool]] = {
    "threshold": ("threshold", (0.9, 0.97, 0.99), True),
    "credit": ("threshold", (0.95, 0.99), True),
    "multi_block": ("threshold", (0.95, 0.98), True),
    "localleap": ("threshold", (0.95, 0.99), True),
    "factor": ("factor", (0.1, 0.25), False),
    "certainty_density": ("threshold", (0.25, 0.35), False),
}
FIXED = ("klass",)  # schedulers that are tried as they are
STEPWISE = "fixed_quota"


@dataclass(frozen=True)
class Choice:
    """One setting of everything that a search decides."""

    scheduler: str  # by name, without the option
    value: float | None  # of its option; None: as it is
    block_length: int
    cache: str = "none"
    verifier: str | None = None
    batch_size: int = 32

    @property
    def given(self) -> dict[str, Any]:
        """The settings as `generate` takes them; the batch decides no answer and is apart."""
        option = "" if self.value is None else f":{self.value:g}"
        parts = {"scheduler": self.scheduler + option, "cache": self.cache}
        parts |= {} if self.verifier is None else {"verifier": self.verifier}
        return {**parts, "block_length": self.block_length}

    @property
    def label(self) -> str:
        """A name unlike that of any other choice."""
        given = self.given
        parts = [given["scheduler"], *([self.cache] if self.cache != "none" else [])]
        parts += [] if self.verifier is None else [self.verifier]
        return " + ".join(parts) + f", block {self.block_length}, batch {self.batch_size}"


@dataclass(frozen=True)
class Space:
    """What may be varied: the parts that can change the cost, within what the model allows."""

    max_new_tokens: int
    block_length: int  # the model's own
    batch_size: int
    schedulers: tuple[str, ...]
    verifiers: tuple[str | None, ...]
    caches: tuple[str, ...]
    blocks: tuple[int, ...]
    batches: tuple[int, ...]

    @staticmethod
    def of(cost: str, max_new_tokens: int, block_length: int, batch_size: int) -> Space:
        """Returns the space of a cost; a cache saves no forward, and a batch nothing but time."""
        blocks = [b for b in BLOCKS if b <= max_new_tokens and max_new_tokens % b == 0]
        return Space(
            *(max_new_tokens, block_length, batch_size, (*KNOBS, *FIXED)),
            verifiers=VERIFIERS,
            caches=CACHES[:1] if cost == "forwards" else CACHES,
            blocks=tuple(sorted({*blocks, block_length})),
            batches=BATCHES if cost == "seconds" else (batch_size,),
        )

    @property
    def stepwise(self) -> Choice:
        """One token a forward: what the floor is a share of."""
        return Choice(STEPWISE, None, self.block_length, batch_size=self.batch_size)

    def first(self) -> list[Choice]:
        """Returns where a search begins: each scheduler, then one part of a careful one varied."""
        plain = [
            replace(self.stepwise, scheduler=name, value=value)
            for name in self.schedulers
            for value in (KNOBS[name][1] if name in KNOBS else (None,))
        ]
        careful = replace(self.stepwise, scheduler="threshold", value=KNOBS["threshold"][1][-1])
        varied = [replace(careful, cache=cache) for cache in self.caches]
        varied += [replace(careful, verifier=verifier) for verifier in self.verifiers]
        varied += [replace(careful, block_length=block) for block in self.blocks]
        varied += [replace(careful, batch_size=batch) for batch in self.batches]
        return list(dict.fromkeys([*plain, *varied]))

    def near(self, leaders: Sequence[Choice], known: Iterable[Choice], seed: str) -> list[Choice]:
        """Returns all new neighbours of the leaders, one part changed, in the order of a seed."""
        found = dict.fromkeys(one for leader in leaders for one in self._around(leader))
        left = [one for one in found if one not in set(known)]
        random.Random(seed).shuffle(left)
        return left

    def _around(self, one: Choice) -> list[Choice]:
        near = [replace(one, value=value) for value in _steps(one)]
        near += [replace(one, block_length=b) for b in _beside(one.block_length, self.blocks)]
        near += [replace(one, batch_size=b) for b in _beside(one.batch_size, self.batches)]
        near += [replace(one, verifier=v) for v in self.verifiers if v != one.verifier]
        return near + [replace(one, cache=c) for c in self.caches if c != one.cache]


def _steps(one: Choice) -> list[float]:
    """Returns values beside an option's: a third and a half way to twice the care or half of it."""
    if one.value is None:
        return []
    _, _, probability = KNOBS[one.scheduler]
    factors = (0.5, 0.75, 1.33, 2.0)
    if probability:
        values = [1 - _rounded((1 - one.value) * factor) for factor in factors]
        return [round(value, 6) for value in values if 0.5 <= value <= 0.9999]
    return [value for value in (_rounded(one.value * f) for f in factors) if 0 < value <= 1]


def _rounded(value: float) -> float:
    """Returns two significant digits, so that two ways to a value meet."""
    return round(value, 1 - math.floor(math.log10(value)))


def _beside(value: int, allowed: Sequence[int]) -> list[int]:
    """Returns the values before and after one."""
    lower, upper = [a for a in allowed if a < value], [a for a in allowed if a > value]
    return [*lower[-1:], *upper[:1]]
