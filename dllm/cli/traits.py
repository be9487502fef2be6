"""What a scheduler needs and does besides committing masks of its block, found by asking it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dllm.generate import generate
from dllm.models import wrap
from dllm.schedulers import Scheduler, Setup
from dllm.schedulers.wrapper import Wrapper

_BLOCK, _SLOTS = 16, 128
_ROWS, _VOCABULARY = 3, 1009  # sizes that no other axis has

# What is said of a fact that holds: in a table, and in full.
_WORDS = {
    "revises": ("revises", "revises tokens of its block"),
    "state": ("state", "keeps state"),
    "window": ("wider window", "has a window wider than its block"),
    "whole_row": ("sees the row", "sees the whole generated region"),
    "anywhere": ("commits in any block", "commits in any block of the row"),
    "shadow": ("feeds columns twice", "feeds every column of its window twice"),
    "rows": ("several rows a forward", "feeds several rows a forward for each row"),
    "shortens": ("cuts rows off", "cuts rows off"),
    "skips": ("may skip", "may commit nothing in a forward"),
    "tempered": ("tempered", "reads confidence after temperature, top-p and top-k"),
}


@dataclass(frozen=True)
class Trait:
    """One thing that sets a scheduler apart from a threshold on the columns of its block."""

    brief: str
    full: str


@dataclass
class _Fact:
    """Something that holds with default options, or not, and the options that change it."""

    usual: Any
    options: list[str] = field(default_factory=list)
    ways: list[str] = field(default_factory=list)  # the same, as one would write the change

    def note(self, name: str, value: Any, other: Any) -> None:
        """Records an option if with `value` the fact is another one."""
        if other != self.usual and name not in self.options:
            self.options.append(name)
            self.ways.append(f"`{name}`" if isinstance(value, float) else f"`{name}={value}`")


def traits_of(part: type[Scheduler]) -> list[Trait]:
    """Returns what a scheduler needs with its default options, and what other options change."""
    facts = {name: _Fact(value) for name, value in _observed(part()).items()}
    for name, value in _other_values(part):
        try:
            other = _observed(part(**{name: value}))
        except ValueError:  # options that only go together
            continue
        for fact in facts:
            facts[fact].note(name, value, other[fact])
    traits = [trait for name, fact in facts.items() for trait in _told(name, fact)]
    if issubclass(part, Wrapper):
        traits.insert(0, Trait("asks `inner`", "asks `inner`, and needs what that needs"))
    if part.check_model not in (Scheduler.check_model, Wrapper.check_model):
        traits.append(Trait("not every model", "does not suit every model, and says why"))
    return traits


def _told(name: str, fact: _Fact) -> Iterator[Trait]:
    """Yields a fact as text; nothing where no option makes it hold."""
    usual, ways = fact.usual, " or ".join(fact.ways)
    options = f" ({', '.join(f'`{option}`' for option in fact.options)})" if fact.options else ""
    brief, full = _WORDS[name]
    if not usual and ways:
        yield Trait(f"{brief} with {ways}", f"{full}, only with {ways}")
    elif name == "state" and usual:
        yield Trait("state of vocabulary size" if "V" in usual else "state", f"{full}: {usual}")
    elif name == "window" and usual:
        yield Trait(f"window of {usual}", f"has a window of {usual}{options}")
    elif name == "rows" and usual:
        yield Trait(f"{usual} rows a forward", f"feeds {usual} rows for each row{options}")
    elif usual:
        yield Trait(brief, f"{full}, not with {ways}" if ways else full)


def _observed(scheduler: Scheduler) -> dict[str, Any]:
    """Returns every fact about a scheduler; a false one is nothing to tell."""
    needs = scheduler.needs(_SLOTS, _BLOCK)
    return {
        "revises": scheduler.can_revise,
        "state": _state(scheduler),
        "window": _window(scheduler),
        "whole_row": needs.whole_row,
        "anywhere": needs.whole_row and _leaves_blocks(scheduler),
        "shadow": needs.shadow,
        "rows": needs.num_variants if needs.num_variants > 1 else 0,
        "shortens": needs.shortens,
        "skips": scheduler.may_skip,
        "tempered": scheduler.reads == "tempered",
    }


def _window(scheduler: Scheduler) -> str:
    """Returns the columns that it may commit in, if they are more than its block."""
    window, longer = (scheduler.needs(slots, _BLOCK).window for slots in (_SLOTS, 2 * _SLOTS))
    if window != longer:
        return f"{longer / (2 * _SLOTS):.0%} of the slots"
    return f"{window / _BLOCK:g} blocks" if window > _BLOCK else ""


def _leaves_blocks(scheduler: Scheduler) -> bool:
    """Whether it takes fewer forwards than blocks where a model is sure of everything."""
    model = wrap(_sure_of_everything, mask_token_id=7, eos_token_id=6, vocab_size=8)
    out = generate(model, [[0]], scheduler=scheduler, max_new_tokens=8, block_length=2)
    return out.metrics.num_forwards < 8 // 2


def _sure_of_everything(tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Returns logits (B, L, 8) of a model that knows a single token."""
    return one_hot(torch.ones_like(tokens), 8) * 30.0


def _state(scheduler: Scheduler) -> str:
    """Returns the tensors that a scheduler keeps, with their axes; empty if it keeps none."""
    width = scheduler.needs(_SLOTS, _BLOCK).width(_SLOTS, _BLOCK)
    cpu = torch.device("cpu")
    setup = Setup(_ROWS, width, _SLOTS, _BLOCK, _VOCABULARY, torch.float32, cpu)
    letters = {_ROWS: "B", width: "W", _VOCABULARY: "V"}
    kept = []
    for name, tensor in scheduler.start(setup).items():
        axes = [letters.get(size, str(size)) for size in tensor.shape]
        kept.append(f"`{name}` ({axes[0]},)" if len(axes) == 1 else f"`{name}` ({', '.join(axes)})")
    return ", ".join(kept)


def _other_values(part: type[Scheduler]) -> Iterator[tuple[str, Any]]:
    """Yields options with values, other than the default, that may change what is needed."""
    hints = typing.get_type_hints(part)
    for option in dataclasses.fields(part):
        name, default, kinds = option.name, option.default, typing.get_args(hints[option.name])
        if typing.get_origin(hints[name]) is typing.Literal:
            yield from ((name, choice) for choice in kinds if choice != default)
        elif isinstance(default, bool):
            yield name, not default
        elif type(None) in kinds and default is not None:
            yield name, None
        elif type(None) in kinds and not {int, float}.isdisjoint(kinds):
            yield name, 0.5 if float in kinds else 1
        elif isinstance(default, int):
            yield name, default + 1
