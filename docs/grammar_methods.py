"""The page of grammars: which scheduler, cache, verifier and setting goes with which method."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, cast, get_args

import dllm
from dllm.cli.methods import MARKER, escape, markdown_table
from dllm.compatible import check
from dllm.constraints import Grammar
from dllm.constraints.grammar import Method
from dllm.decoding.speculation import verifiers
from dllm.models.model import DenoisingModel
from dllm.settings import Settings
from tests.support.models import family_model, golden_model, taught

GRAMMAR = 'start: "(" start ")" |'
METHODS: tuple[Method, ...] = get_args(Method)
# Of each method the settings that it is asked with; models that between them take every part.
SETTINGS: Mapping[str, Mapping[str, Any]] = {"prefix": {"block_length": 1}}
MODELS = ("llada_mha", "dream_gqa", "sdar_dense", "wedlm", "e2d2_tied", "fast_dllm_v2", "tiny")
OTHERS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("`block_length=8`", {"block_length": 8}),
    ('`joint="map"`', {"joint": "map"}),
    ('`at_eos="truncate"`', {"at_eos": "truncate"}),
    ("`first_token=force` of caches", {"cache": "dual:first_token=force"}),
    ("`temperature=1`", {"temperature": 1.0}),
    ("`batch_size=1` with prompts that wait", {"batch_size": 1}),
)


@dataclass(frozen=True)
class Answer:
    """Whether something goes with a method."""

    reason: str | None  # None: it goes; else why it does not

    @property
    def text(self) -> str:
        return "yes" if self.reason is None else "no"


def page() -> str:
    """Returns the tables of schedulers, caches, verifiers and settings."""
    parts = [MARKER]
    for title, rows in tables().items():
        parts += [f"## {title}", _table(rows)]
    return "\n\n".join(parts) + "\n"


def tables() -> dict[str, dict[str, dict[str, Answer]]]:
    """Returns for each kind of part, and each part, what it says to each method."""
    kinds = {"scheduler": dllm.schedulers.registry.names(), "cache": dllm.cache.registry.names()}
    kinds["verifier"] = verifiers.registry.names()
    found = {
        f"{kind.capitalize()}s": {f"`{name}`": answers({kind: name}) for name in names}
        for kind, names in kinds.items()
    }
    return {**found, "Settings": {name: answers(options) for name, options in OTHERS}}


def answers(options: Mapping[str, Any]) -> dict[str, Answer]:
    """Returns what some settings say to each method; what no constraint goes with, says it too."""
    return {method: answer(method, options) for method in METHODS}


def answer(method: Method, options: Mapping[str, Any]) -> Answer:
    """Returns whether settings go with a method, on some model that they go with by themselves."""
    held = Grammar(GRAMMAR, method=method)
    refused = "no model that dllm hosts takes it with masks"
    for model, suited in _models_for(options):
        try:
            check(
                model, replace(suited, constraint=held, **{**SETTINGS.get(method, {}), **options})
            )
        except ValueError as error:
            refused = str(error)
            continue
        return Answer(None)
    return Answer(refused)


def _models_for(options: Mapping[str, Any]) -> Iterator[tuple[DenoisingModel, Settings]]:
    """Yields models on which settings go together without a constraint, and those settings."""
    for model in _models():
        for scheduler in ("threshold", "fixed_quota:order=planned"):
            settings = Settings(**{"max_new_tokens": 32, "scheduler": scheduler, **options})
            try:
                check(model, replace(settings, joint="confidence"))  # which is about constraints
            except ValueError:
                continue
            yield model, settings


@cache
def _models() -> tuple[DenoisingModel, ...]:
    tokenizer = SimpleNamespace()  # whose tokens are not looked at
    models = [dllm.load(name) if name == "tiny" else golden_model(name) for name in MODELS]
    models += [taught(models[0]), family_model("nemotron")]
    return tuple(replace(one, tokenizer=cast("Any", tokenizer)) for one in models)


def _short(reason: str) -> str:
    """Returns a reason without whom it is said to, and without the way out."""
    text = " ".join(reason.split()).removesuffix(" With method='depth' it goes together")
    text = re.sub(r"^(constraint|a Grammar that is asked token by token) refuses ", "", text)
    text = re.sub(r"^method='prefix' knows .* left to right, and ", "", text)
    return re.sub(r"(; take|: take|: give) .*$", "", text).removesuffix(".")


def _table(rows: Mapping[str, Mapping[str, Answer]]) -> str:
    lines = []
    for name, found in rows.items():
        reasons = {one.reason for one in found.values() if one.reason is not None}
        why = "; ".join(escape(_short(reason)) for reason in sorted(reasons))
        lines.append((name, *(found[method].text for method in METHODS), why))
    return markdown_table(("", *(f"`{method}`" for method in METHODS), "why not"), lines)
