"""Schedulers around another one: the inner rule decides, the outer adds to it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm.registry import name_of
from dllm.schedulers.base import Build, Decision, ModelSpec, Needs, Scheduler, Setup, State, View
from dllm.schedulers.threshold import Threshold
from dllm.state.candidates import Candidates, ConfidenceSource
from dllm.state.variants import Variants


@dataclass(frozen=True)
class Wrapper(Scheduler):
    """A scheduler that asks `inner` first.

    `inner` sees the window that it would see alone, whatever the wrapper asks for.
    """

    inner: Scheduler = field(default_factory=Threshold)

    @property
    def can_revise(self) -> bool:
        return self.inner.can_revise

    @property
    def may_skip(self) -> bool:
        return self.inner.may_skip

    @property
    def reads(self) -> ConfidenceSource:
        return self.inner.reads

    @property
    def stateless(self) -> bool:
        return self.inner.stateless

    def needs(self, num_slots: int, block_length: int) -> Needs:
        """Returns what the wrapper and the inner scheduler ask for together."""
        size = num_slots, block_length
        return self.own_needs(*size).union(self.inner.needs(*size))

    def own_needs(self, num_slots: int, block_length: int) -> Needs:
        """Returns what the wrapper itself asks for."""
        return self.constant_needs

    def start(self, setup: Setup) -> State:
        num_slots, block = setup.num_slots, setup.block_length
        width = self.inner.needs(num_slots, block).width(num_slots, block)
        return self.inner.start(replace(setup, width=min(width, setup.width)))

    def score(self, candidates: Candidates) -> Tensor:
        return self.inner.score(candidates)

    def appraise(self, candidates: Candidates, view: View, variants: Variants) -> Tensor:
        return self.inner.appraise(candidates, view, variants)

    def revision_limit(self, block_length: int) -> int:
        return self.inner.revision_limit(block_length)

    def check(self, num_blocks: int, block_length: int) -> None:
        self.inner.check(num_blocks, block_length)

    def check_model(self, spec: ModelSpec) -> None:
        if self.inner.needs(2, 1).room:
            name, inner = (one.summary()["name"] for one in (self, self.inner))
            raise ValueError(
                f"scheduler {name!r} adds to what inner={inner!r} decides, by columns, and the gap "
                f"of that grows and shrinks: take {inner!r} alone"
            )
        self.inner.check_model(spec)

    def token_ids(self) -> dict[str, tuple[int, ...]]:
        return self.inner.token_ids()

    def with_options(self, options: Mapping[str, Any], build: Build) -> Scheduler:
        """Returns the same with other options; what it has none for goes to `inner`."""
        known = {option.name for option in fields(self)}
        others = {name: value for name, value in options.items() if name not in known}
        inner = self.inner.with_options(others, build) if others else self.inner
        own = {name: options[name] for name in options if name in known}
        return build({**self.summary(), **own, "inner": inner, "name": type(self)})

    def ask(self, candidates: Candidates, view: View) -> Decision:
        """Returns the inner decision, in the columns of this scheduler's window."""
        size = view.layout.num_slots, view.layout.block_length
        needs = self.inner.needs(*size)
        width = needs.width(*size)
        if needs.whole_row or width >= view.columns.shape[1]:
            return self.inner.decide(candidates, view)
        index = view.first_of_block()[:, None] + torch.arange(width, device=view.columns.device)
        return _spread(self.inner.decide(candidates.at(index), view.at(index)), index, view)


@dataclass(frozen=True)
class Bounded(Wrapper):
    """A wrapper that says where a row's block ends; `inner` decides what is committed in it."""

    bounded_by: ClassVar[str] = ""  # the option that says how long a block may be

    def __post_init__(self) -> None:
        name, needs, inner = name_of(type(self)), self.inner.needs(2, 1), self.inner
        if needs.window or needs.num_variants > 1:
            raise ValueError(
                f"inner={inner.summary()['name']!r} commits in several blocks, which have no end "
                f"yet: {name} needs a scheduler that stays in its block"
            )
        while isinstance(inner, Wrapper):
            if inner.own_needs(2, 1).whole_row:
                other = inner.summary()["name"]
                raise ValueError(
                    f"inner={other!r} acts on the whole row, and {name} would keep it in its "
                    f"block: put it around, as {other}:inner={name}"
                )
            inner = inner.inner

    def longest(self, num_slots: int, block_length: int) -> int:
        """Returns the most columns that a block may have."""
        return self.own_needs(num_slots, block_length).window

    def check(self, num_blocks: int, block_length: int) -> None:
        self.inner.check(num_blocks, block_length)
        longest = self.longest(num_blocks * block_length, block_length)
        try:  # what is made for one length, as a filter is, may not serve the longest block
            self.inner.check(num_blocks, longest)
        except ValueError as error:
            name, option = name_of(type(self)), self.bounded_by
            bound = f" with {option}={getattr(self, option)}" if option else ""
            raise ValueError(
                f"{name}{bound} has blocks of up to {longest} columns: {error}"
            ) from None

    def revision_limit(self, block_length: int) -> int:
        return sys.maxsize  # `inner` holds its own, for the longest block

    def start(self, setup: Setup) -> State:
        # It sees the whole window: blocks differ in length.
        longest = self.longest(setup.num_slots, setup.block_length)
        return self.inner.start(replace(setup, block_length=longest))

    def within(self, view: View, block: Tensor) -> View:
        """Returns the view as if each row's block had always been `block`, (B, W) bool."""
        layout, masks = view.layout, (block & ~view.fixed).sum(1)
        longest = self.longest(layout.num_slots, layout.block_length)
        # So that wrappers look at all of it; blocks are as many as they were.
        layout = replace(layout, block_length=longest, own_most_blocks=layout.most_blocks)
        masked = view.masked & block
        return replace(view, block=block, masked=masked, block_masks=masks, layout=layout)


def _spread(decision: Decision, index: Tensor, view: View) -> Decision:
    """Returns a decision on the columns `index` (B, n) of a wider window."""
    narrow = {name: getattr(decision, name) for name in ("commit", "remask", "edit", "tokens")}
    rest = {name: torch.zeros_like(view.masked) for name in narrow} | {"tokens": view.tokens}
    wide: dict[str, Any] = {
        k: rest[k].scatter(1, index, v) for k, v in narrow.items() if v is not None
    }
    return replace(decision, **wide)
