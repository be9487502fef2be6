"""Random combinations of everything that a call can be told, each one as a call to repeat."""

from __future__ import annotations

import dataclasses
import math
import random
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import dllm
from dllm.decoding.speculation import verifiers
from dllm.options import Range
from dllm.registry import Registry
from dllm.schedulers import Scheduler
from dllm.state.plan import StepPlan
from tests.support.languages import Spelled, random_automaton
from tests.support.laws import CONTEXT, FILTER, FREQUENCIES
from tests.support.models import MODELS, model_of

FAMILIES = (
    "sdar",
    "fast_dllm_v2",
    "causal",
    "wedlm",
    "nemotron",
    "e2d2",
    "e2d2_shared",
    "llada2_moe",
    "sdar_moe",
    "bd3lm",
)  # random ones with exact caches
NAMES = (*MODELS, *FAMILIES, "wrapped", "wrapped_shifted")
COMMON = (6, 9, 13, 29, 47, 72, 113)  # tokens that are proposed often, for ends and delimiters
TOKENS = 125  # ids below have no meaning in any of these models

# Options that single numbers do not suit.
ANY_OF: dict[str, tuple[Any, ...]] = {
    "filter": (None, FILTER),
    "weights": (None, CONTEXT),
    "frequencies": (None, FREQUENCIES),
    "foreign": (True,),
    "delimiters": ((), COMMON[:3], COMMON),
    "marker": (COMMON[:1], COMMON[1:3]),
    "branches": (1, 2, 3),  # rows of a pass
    "alternatives": (0, 1, 2),
    "draft_steps": (1, 2, 4),
    "draft_length": (0, 1, 3),
    "loops": (0, 1, 2, 7),  # a step each
    "steps": (None, None, 6, 12, 12, 24, 24, 48, 2**20),  # most numbers do not divide
}


class Language(Spelled):
    """A small random language, which is written as its seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(random_automaton(np.random.default_rng(seed), 4))
        object.__setattr__(self, "seed", seed)

    def __repr__(self) -> str:
        return f"Language({vars(self)['seed']})"


@dataclass(frozen=True)
class Combination:
    """A call of `generate`."""

    model: str
    prompts: list[list[int]]
    options: dict[str, Any]

    def __str__(self) -> str:
        given = "".join(f", {name}={_written(value)}" for name, value in self.options.items())
        start = "from tests.support.fuzz import Language, fuzzed_model"
        return f"{start}\ndllm.generate(fuzzed_model({self.model!r}), {self.prompts}{given})"


def _written(value: Any) -> str:
    return str(value) if isinstance(value, torch.dtype) else repr(value)


class Module(nn.Module):
    """The network of a golden model as a module of others: tokens and a padding mask."""

    def __init__(self, model: dllm.HostedModel) -> None:
        super().__init__()
        self.model = model
        self.network = model.network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        columns = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        seen = attention_mask.bool()[:, None]
        plan = StepPlan("refresh", columns, columns, columns.shape[1], seen)
        return self.network(input_ids, plan)


@cache
def fuzzed_model(name: str) -> Any:
    """Returns a model of `NAMES`; with "spoken" behind its name, one with a tokenizer."""
    name, _, spoken = name.partition(" ")
    if spoken:
        numbers = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))
        return dataclasses.replace(model_of(name), tokenizer=numbers)  # type: ignore[arg-type]
    if not name.startswith("wrapped"):
        return model_of(name)
    with torch.inference_mode(False):
        inner = model_of("dream_gqa" if name == "wrapped_shifted" else "llada_mha")
        spec = inner.spec
        return dllm.wrap(
            Module(inner).eval(),
            mask_token_id=spec.mask_token_id,
            eos_token_id=list(spec.eos_token_ids),
            vocab_size=spec.vocab_size,
            logit_shift=spec.logit_shift,
        )


class Draw:
    """One source of chance."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def chance(self, share: float) -> bool:
        """Returns True in so many of all cases."""
        return self.random.random() < share

    def one(self, values: Sequence[Any]) -> Any:
        """Returns one of several values."""
        return self.random.choice(values)

    def combination(self) -> Combination:
        """Returns a call, which may be one that is refused."""
        name = self.one(NAMES)
        prompts = [self._prompt() for _ in range(self.one((1, 2, 2, 3, 4)))]
        block = self.one((4, 8, 8, 12))
        options: dict[str, Any] = {"max_new_tokens": block * self.one((1, 2, 3))}
        options["block_length"] = block
        options["scheduler"] = self.part(dllm.schedulers.registry)
        options["cache"] = self._cache(name)
        options["seed"] = self.one((0, 7, -3, 2**40, [5 * row for row in range(len(prompts))]))
        options |= self._sampling() | self._ends() | self._further()
        if self.chance(0.25) and not str(name).startswith("wrapped"):
            options["verifier"] = self.part(verifiers.registry)
            options["scheduler"] = self.one(("threshold:0.3", "factor", "fixed_quota"))
            options["cache"] = self.one(("none", "prefix", "dual", "block_causal"))
            if options["verifier"]["name"] == "linear":  # which takes this model and two caches
                name, options["scheduler"] = "nemotron", "threshold"
                options["cache"] = self.one(("none", "block_causal"))
                del options["block_length"]
                for refused in ("guidance_scale", "repetition_penalty"):
                    options.pop(refused, None)
        if self.chance(0.2):
            options["batch_size"] = self.one((1, 2))
        mask = fuzzed_model(name).spec.mask_token_id
        if self.chance(0.1):
            options["infill"] = True
            prompts = [self._gaps(row, mask, options["max_new_tokens"]) for row in prompts]
        elif self.chance(0.2):
            offsets = self.random.sample(range(options["max_new_tokens"]), 3)
            options["fixed"] = {offset: self.random.randrange(TOKENS) for offset in offsets}
        return Combination(name, prompts, options)

    def in_languages(self) -> Combination:
        """Returns a call with a language for some of its prompts, which may be refused."""
        drawn = self.combination()
        while drawn.model.startswith("wrapped"):  # these have no tokenizer
            drawn = self.combination()
        options = drawn.options | {"constraint": [self._language() for _ in drawn.prompts]}
        for name in ("defer_eos", "deferred_token_ids", "min_new_tokens"):
            options.pop(name, None)
        if self.chance(0.3):
            options["joint"] = "map"
        return Combination(f"{drawn.model} spoken", drawn.prompts, options)

    def _language(self) -> Language | None:
        return Language(self.random.randrange(10**6)) if self.chance(0.8) else None

    def _prompt(self) -> list[int]:
        return [self.random.randrange(90) for _ in range(self.random.randint(1, 20))]

    def _gaps(self, prompt: list[int], mask: int, size: int) -> list[int]:
        """Returns a prompt followed by gaps and text, as many columns for each row."""
        behind = [self.random.randrange(90) if self.chance(0.3) else mask for _ in range(size)]
        return [*prompt, mask, *behind[1:]]

    def _sampling(self) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        if self.chance(0.4):
            drawn["temperature"] = self.one((1e-6, 0.2, 1.0, 3.0, 1e6))
        if self.chance(0.25):
            drawn["top_p"] = self.one((1e-9, 0.3, 0.9, 1.0))
        if self.chance(0.25):
            drawn["top_k"] = self.one((1, 2, 20, 2**31 - 1))
        if self.chance(0.2):
            drawn["confidence"] = self.one(("raw", "tempered"))
        if self.chance(0.2):
            drawn["statistics_dtype"] = torch.float64
        return drawn

    def _ends(self) -> dict[str, Any]:
        drawn: dict[str, Any] = {"eos_token_id": list(COMMON)} if self.chance(0.7) else {}
        if self.chance(0.6):
            drawn["at_eos"] = self.one(("ignore", "stop", "skip", "block", "truncate"))
        if self.chance(0.1):
            drawn["forbid_eos"] = True
        if self.chance(0.1):
            drawn["defer_eos"] = True
        if self.chance(0.1):
            drawn["forbidden_token_ids"] = COMMON[-2:]
        if self.chance(0.1):
            drawn["deferred_token_ids"] = COMMON[:2]
        return drawn

    def _further(self) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        if self.chance(0.1):
            drawn["guidance_scale"] = self.one((0.5, 2.0))
        if self.chance(0.2):
            drawn["blocks_from"] = "zero"
        if self.chance(0.15):
            drawn["min_new_tokens"] = self.one((1, 5, 12))
        if self.chance(0.15):
            drawn["repetition_penalty"] = self.one((0.7, 1.3, 4.0))
        return drawn

    def _cache(self, model: str) -> Any:
        """Returns a cache, more often one that serves the model."""
        if model.startswith("wrapped") or self.chance(0.15):
            return {"name": "none", "beyond_block": self.chance(0.7)}
        if model.startswith("e2d2"):
            return self.part(dllm.cache.registry, self.one(("encoder", "encoder", "none")))
        if model == "wedlm":
            return self.part(dllm.cache.registry, self.one(("streaming", "streaming", "none")))
        if model in FAMILIES and self.chance(0.5):
            return self.part(dllm.cache.registry, self.one(("block_causal", "sub_block")))
        return self.part(dllm.cache.registry)

    def part(self, registry: Registry[Any], name: str = "", depth: int = 0) -> dict[str, Any]:
        """Returns a part of a registry with some of its options drawn from what they allow."""
        name = name or self.one(registry.names())
        kind = registry.get(name)
        hints = typing.get_type_hints(kind, include_extras=True)
        options: dict[str, Any] = {"name": name}
        for field in dataclasses.fields(kind):
            if not field.init:
                continue
            if hints[field.name] is Scheduler:
                inner = self.part(registry, "threshold" if depth > 1 else "", depth + 1)
                options[field.name] = inner
            elif field.name in ("filter", "foreign") or self.chance(0.6):
                known = ANY_OF.get(field.name)
                options[field.name] = self.one(known) if known else self.value(hints[field.name])
        return options

    def value(self, hint: Any) -> Any:
        """Returns a value that an annotation allows."""
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            return self._number(args[0], args[1])
        if origin in (typing.Union, types.UnionType):
            return self.value(self.one(args))
        if origin is Literal:
            return self.one(args)
        if hint is bool:
            return self.chance(0.5)
        if hint is type(None):
            return None
        raise TypeError(f"no value of {hint} can be drawn: add its option to ANY_OF")

    def _number(self, kind: Any, allowed: Range) -> Any:
        """Returns a number of a range: small in most cases, its ends in some."""
        low, high = allowed.least, allowed.most
        if self.chance(0.1):
            value = self.one((low, high))
            return kind(value) if value in allowed else self._number(kind, allowed)
        if kind is int:
            return self.random.randint(int(low), int(min(high, low + 12)))
        if high <= 2:
            return self.random.uniform(low, high) or high
        return math.exp(self.random.uniform(math.log(0.01), math.log(min(high, 20.0))))
