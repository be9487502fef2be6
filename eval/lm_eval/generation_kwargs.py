"""What a task of the lm-evaluation-harness wishes for, below what the user gave."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dllm.compatible import check
from dllm.eval.lm_eval.arguments import ArgumentError, Arguments
from dllm.models.model import DenoisingModel
from dllm.settings import ALIASES, SCHEDULER_OPTIONS, Settings, resolve

logger = logging.getLogger(__name__)

# The harness's names for the number of new tokens; the first that is given counts.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass
class Wishes:
    """Makes settings of a task's generation arguments; what the user gave goes first."""

    model: DenoisingModel
    arguments: Arguments
    base: Settings = field(init=False)  # of a task that wishes for nothing
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        try:
            self.base = resolve(self.model.defaults, None, self.arguments.settings)
            check(self.model, self.base)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"--model_args: {error}") from error

    @property
    def seed(self) -> int:
        """The number that each request's own seed is derived from."""
        return self.base.seed if isinstance(self.base.seed, int) else 0

    def settings(self, asked: Mapping[str, Any]) -> Settings:
        """Returns the settings of a request; raises ArgumentError for what nobody knows."""
        given = self.arguments.settings
        own = set().union(*(set_by(name, value) for name, value in given.items()))
        try:
            wanted = in_our_names(asked)
            for name, value in list(wanted.items()):
                for ruled in set_by(name, value) & own:
                    wanted.pop(name, None)
                    self._overrule(f"{name}={value!r}", ruled, value)
            return resolve(self.model.defaults, self.base, wanted)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"the task's generation arguments {dict(asked)}: {error}"
            ) from error

    def _overrule(self, wish: str, name: str, value: Any) -> None:
        ours = getattr(self.base, name)
        text = f"the task asks for {wish}; --model_args has {name}={ours!r}, which is used"
        if ours != value and text not in self.warned:
            logger.warning("%s", text)
            self.warned.add(text)


def set_by(name: str, value: Any) -> set[str]:
    """Returns the settings that a name, or one of the literature's, stands for."""
    if name in SCHEDULER_OPTIONS:
        return {"scheduler"}
    alias = ALIASES.get(name, name)
    return {alias} if isinstance(alias, str) else set(alias(value))


def in_our_names(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns generation arguments as settings; greedy decoding is temperature 0."""
    wanted = {k: v for k, v in asked.items() if k not in (*LENGTHS, "until", "do_sample")}
    length = next((asked[name] for name in LENGTHS if asked.get(name) is not None), None)
    if length is not None:
        wanted["max_new_tokens"] = length
    beams = wanted.pop("num_beams", 1)
    if beams != 1:
        raise ValueError(f"num_beams={beams}: there is no beam search")
    if asked.get("do_sample") is False:
        wanted["temperature"] = 0.0
    elif asked.get("do_sample"):
        wanted.setdefault("temperature", 1.0)
    return wanted


def stops(until: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the texts that end an answer."""
    listed = [until] if isinstance(until, str) else until or ()
    return tuple(text for text in listed if text)


def seed_of(seed: int, *key: Any) -> int:
    """Returns the seed of a request: the same in any batch, on any process."""
    text = json.dumps([seed, *key], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
