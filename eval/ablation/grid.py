"""Every combination of a grid, less those that are excluded, each with a name of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from dllm import cache as caches
from dllm import schedulers
from dllm.decoding.speculation import verifiers
from dllm.eval.run.describe import short
from dllm.registry import Registry

_PARTS: dict[str, Registry[Any]] = {
    "scheduler": schedulers.registry,
    "cache": caches.registry,
    "verifier": verifiers.registry,
}
_ABSENT = (None, "none")


def combinations(
    grid: Mapping[str, Any], exclude: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Returns a mapping for each combination, with a `name` made of what varies.

    A list holds alternatives; any other value is the only one. Raises ValueError for an exclusion
    that excludes nothing, and if nothing is left.
    """
    choices = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
    for key, values in choices.items():
        if not values:
            raise ValueError(f"grid: {key} has no values")
    every = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    for number, wanted in enumerate(exclude, start=1):
        if not any(_fits(one, wanted) for one in every):
            raise ValueError(f"exclude item {number}: no combination has {dict(wanted)}")
    left = [one for one in every if not any(_fits(one, wanted) for wanted in exclude)]
    if not left:
        raise ValueError("grid: every combination is excluded")
    varying = [key for key, values in choices.items() if len(values) > 1]
    return [{**one, "name": _name(one, varying)} for one in left]


def _fits(one: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a combination has each wanted value, or one of them if several are wanted."""
    return all(
        key in one and one[key] in (value if isinstance(value, list) else [value])
        for key, value in wanted.items()
    )


def _name(one: Mapping[str, Any], varying: Sequence[str]) -> str:
    """Returns the parts that a combination has, then what else varies."""
    named = [
        said(key, one[key])
        for key in _PARTS
        if key in one and (key == "scheduler" or key in varying) and one[key] not in _ABSENT
    ]
    others = [
        said(key, one[key]) if key in ("model", "task") else f"{key}={said(key, one[key])}"
        for key in varying
        if key not in _PARTS
    ]
    return ", ".join([*([" + ".join(named)] if named else []), *others]) or "all"


def said(key: str, value: Any) -> str:
    """Returns a value as a name has it: parts in their short form, a task by name and options."""
    if isinstance(value, str):
        return value
    if key in _PARTS and value is not None:
        registry = _PARTS[key]
        return short(registry.create(value).summary(), registry)
    if isinstance(value, Mapping):
        return " ".join(map(str, value.values()))
    return str(value)
