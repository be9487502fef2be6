"""The settings that a search may try: where it begins, and the neighbours of what leads.

No Optuna: its samplers model one number of each trial by itself, while a race knows all settings
on the same problems and lets their differences decide; and its storage does not keep the state of
a sampler, so that a search that was killed would go on with other draws. Neighbours of the front,
in an order drawn by a seed that is named after the round, are the same after every restart.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, zip_longest
from typing import Any

from dllm.tuning.knobs import Knob, Value, knobs_of, presets_of

BLOCKS = (4, 8, 16, 32, 64, 128, 256)
BATCHES = (8, 16, 32, 64, 128)
VERIFIERS = (None, "freedave:2", "freedave:4", "freedave:8", "ssd:draft_length=4")
CACHES = ("none", "prefix", "dual")
STEPWISE = "fixed_quota"
# What each cost can be lowered by beside the scheduler: a cache saves no forward, a draft is one
# more, and a batch saves nothing but time.
VERIFIED, CACHED, BATCHED = ("passes", "seconds"), ("flops", "seconds"), ("seconds",)

_knobs = cache(knobs_of)


@dataclass(frozen=True)
class Choice:
    """One setting of everything that a search decides."""

    scheduler: str
    options: tuple[tuple[str, Value], ...]  # of the scheduler, those that are not its defaults
    block_length: int
    cache: str = "none"
    verifier: str | None = None
    batch_size: int = 32

    @property
    def given(self) -> dict[str, Any]:
        """The settings as `generate` takes them; the batch decides no answer and is apart."""
        options = ",".join(f"{name}={_text(value)}" for name, value in self.options)
        parts = {"scheduler": self.scheduler + (f":{options}" if options else "")}
        parts |= {"cache": self.cache}
        parts |= {} if self.verifier is None else {"verifier": self.verifier}
        return {**parts, "block_length": self.block_length}

    @property
    def label(self) -> str:
        """A name unlike that of any other choice."""
        given = self.given
        parts = [given["scheduler"], *([self.cache] if self.cache != "none" else [])]
        parts += [] if self.verifier is None else [self.verifier]
        return " + ".join(parts) + f", block {self.block_length}, batch {self.batch_size}"

    def having(self, changed: dict[str, Value]) -> Choice:
        """Returns the choice with other options; one at its default is left out."""
        given = dict(self.options) | changed
        usual = {knob.name: knob.default for knob in _knobs(self.scheduler)}
        left = [(n, given[n]) for n in sorted(given) if n not in usual or given[n] != usual[n]]
        return replace(self, options=tuple(left))


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
    def of(
        cost: str,
        schedulers: Sequence[str],
        max_new_tokens: int,
        block_length: int,
        batch_size: int,
    ) -> Space:
        """Returns the space of a cost: the parts that cannot lower it stay as they are."""
        blocks = [b for b in BLOCKS if b <= max_new_tokens and max_new_tokens % b == 0]
        return Space(
            *(max_new_tokens, block_length, batch_size, tuple(schedulers)),
            verifiers=VERIFIERS if cost in VERIFIED else VERIFIERS[:1],
            caches=CACHES if cost in CACHED else CACHES[:1],
            blocks=tuple(sorted({*blocks, block_length})),
            batches=BATCHES if cost in BATCHED else (batch_size,),
        )

    @property
    def stepwise(self) -> Choice:
        """One token a forward: what the floor is a share of."""
        return Choice(STEPWISE, (), self.block_length, batch_size=self.batch_size)

    def first(self) -> list[Choice]:
        """Returns where a search begins: each scheduler, then one part of a careful one varied."""
        plain = [one for name in self.schedulers for one in self._starts(name)]
        careful = replace(self.stepwise, scheduler="threshold").having({"threshold": 0.97})
        varied = [replace(careful, cache=cache) for cache in self.caches]
        varied += [replace(careful, verifier=verifier) for verifier in self.verifiers]
        varied += [replace(careful, block_length=block) for block in self.blocks]
        varied += [replace(careful, batch_size=batch) for batch in self.batches]
        return [one for one in dict.fromkeys([*plain, *varied]) if one != self.stepwise]

    def near(self, leaders: Sequence[Choice], known: Iterable[Choice], seed: str) -> list[Choice]:
        """Returns new neighbours, one part changed, of each leader in turn, drawn by a seed."""
        drawn, past = random.Random(seed), set(known)
        around = [self._around(leader) for leader in leaders]
        for choices in around:
            drawn.shuffle(choices)
        turns = chain.from_iterable(zip_longest(*around))
        return [one for one in dict.fromkeys(turns) if one is not None and one not in past]

    def _starts(self, name: str) -> list[Choice]:
        plain, knobs = replace(self.stepwise, scheduler=name), _knobs(name)
        values = knobs[0].starts(self.max_new_tokens) if knobs else []
        ways: list[dict[str, Value]] = [{}, *({knobs[0].name: value} for value in values)]
        return [plain.having(way) for way in (*ways, *presets_of(name))]

    def _around(self, one: Choice) -> list[Choice]:
        knobs = _knobs(one.scheduler)
        near = [one.having({k.name: value}) for k in knobs for value in self._beside(one, k)]
        near += [replace(one, block_length=b) for b in _beside(one.block_length, self.blocks)]
        near += [replace(one, batch_size=b) for b in _beside(one.batch_size, self.batches)]
        near += [replace(one, verifier=v) for v in self.verifiers if v != one.verifier]
        return near + [replace(one, cache=c) for c in self.caches if c != one.cache]

    def _beside(self, one: Choice, knob: Knob) -> list[Value]:
        return knob.beside(dict(one.options).get(knob.name, knob.default), self.max_new_tokens)


def _text(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value)


def _beside(value: int, allowed: Sequence[int]) -> list[int]:
    """Returns the values before and after one."""
    lower, upper = [a for a in allowed if a < value], [a for a in allowed if a > value]
    return [*lower[-1:], *upper[:1]]
