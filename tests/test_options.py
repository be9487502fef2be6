"""Every option of every part and every setting: what it is given is checked."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
import pytest

import dllm
from dllm.options import MOST, Options, Range, describe
from dllm.settings import Settings

REGISTRIES = (dllm.schedulers.registry, dllm.cache.registry, dllm.verifiers.registry)
PARTS: list[Any] = [registry.get(name) for registry in REGISTRIES for name in registry.names()]
OWNERS: list[Any] = [*PARTS, Settings]


def options() -> Iterator[Any]:
    for owner in OWNERS:
        hints = typing.get_type_hints(owner, include_extras=True)
        for field in dataclasses.fields(owner):
            if field.init:
                name = f"{owner.__module__.rpartition('.')[2]}.{field.name}"
                yield pytest.param(owner, field.name, hints[field.name], id=name)


def numbers(hint: Any) -> Iterator[tuple[type, list[Range]]]:
    """Yields each kind of number that an annotation allows, and its ranges."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and args[0] in (int, float):
        yield args[0], [extra for extra in args[1:] if isinstance(extra, Range)]
    elif hint in (int, float):
        yield hint, []
    elif origin not in (typing.Literal,) and not _is_mapping(origin):
        for arg in args:
            if arg is not ...:
                yield from numbers(arg)


def of_numbers() -> Iterator[Any]:
    return (one for one in options() if list(numbers(one.values[2])))


def _is_mapping(origin: Any) -> bool:
    return origin is not None and isinstance(origin, type) and "Mapping" in origin.__name__


@pytest.mark.parametrize(("owner", "name", "hint"), list(options()))
def test_every_number_has_a_finite_range(owner: Any, name: str, hint: Any) -> None:
    for kind, ranges in numbers(hint):
        assert ranges, f"{name}: {kind.__name__} of {owner.__name__} states no range"
        for one in ranges:
            assert math.isfinite(one.least)
            assert math.isfinite(one.most)


@pytest.mark.parametrize(("owner", "name", "hint"), list(of_numbers()))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "x\ny", True, object()])
def test_no_number_is_taken_from_what_is_none(owner: Any, name: str, hint: Any, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        owner(**{name: value})


@pytest.mark.parametrize(("owner", "name", "hint"), list(options()))
def test_the_ends_of_a_range_are_in_it_and_what_is_beyond_is_not(
    owner: Any, name: str, hint: Any
) -> None:
    for kind, ranges in numbers(hint):
        for one in ranges:
            step = 1 if kind is int else 1e-3 * max(1.0, abs(one.most))
            for beyond in (one.least - step, one.most + step):
                if beyond not in one.besides:
                    with pytest.raises(ValueError, match=rf"{name}=.* must be "):
                        owner(**{name: kind(beyond)})


def test_a_number_is_kept_as_pythons_own() -> None:
    for value in (1, np.float64(1), np.int64(1), Fraction(1), np.float32(1)):
        part = dllm.schedulers.registry.create({"name": "threshold", "threshold": value})
        kept = part.summary()["threshold"]
        assert type(kept) is float
        assert part == dllm.schedulers.registry.create("threshold:1.0")
    many = Settings(max_new_tokens=np.int64(8), forbidden_token_ids=[1, np.int32(2)])  # type: ignore[arg-type]
    assert many == Settings(max_new_tokens=8, forbidden_token_ids=(1, 2))
    assert type(many.max_new_tokens) is int


def test_who_relates_options_cannot_forget_to_check_each() -> None:
    @dataclasses.dataclass(frozen=True)
    class Related(Options):
        low: Annotated[float, Range(0, 1)] = 0.0
        high: Annotated[float, Range(0, 1)] = 1.0

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low={self.low} must be at most high={self.high}")

    with pytest.raises(ValueError, match=r"low=nan must be a number, in \[0, 1\]"):
        Related(low=math.nan)
    with pytest.raises(ValueError, match="must be at most high"):
        Related(low=0.7, high=0.6)
    assert Related(low=0.6, high=0.7).high == 0.7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("threshold:.nan", "threshold=nan must be a number, in [0, 1]"),
        ("threshold:.inf", "threshold=inf must be a number, in [0, 1]"),
        ("threshold:2", "threshold=2 must be in [0, 1]"),
        ("threshold:-1", "threshold=-1 must be in [0, 1]"),
        ("threshold:true", "threshold=True must be a number"),
        ("threshold:null", "threshold=None must be a number"),
        ("threshold:[0.9", "'[0.9' is no value"),
        ("threshold:{a", "'{a' is no value"),
        ("threshold:*a", "'*a' is no value"),
        ("threshold:!!python/name:os.system", "is no value"),
        ("threshold:2024-99-99", "is no value"),
        ("threshold:'", "is no value"),
        ("threshold:0.9,threshold", "write 'threshold' as option=value"),
        ("localleap:radius=1.5", "radius=1.5 must be a whole number"),
        (f"localleap:radius={MOST + 1}", "radius=1048577 must be at most 1048576"),
        ("fixed_quota:order=best", "order='best' must be one of 'confidence', 'margin'"),
        ("lopa:branches=1000", "branches=1000 must be at most 256"),
    ],
)
def test_what_text_gives_is_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        dllm.schedulers.registry.create(text)
    assert "\n" not in str(error.value)


def test_words_for_what_is_allowed() -> None:
    assert describe(Annotated[int, Range(1, MOST)] | None) == "a whole number of at least 1 or none"
    assert describe(tuple[int, ...]) == "a list of whole numbers"
    assert str(Range(0, 1, above=True)) == "in (0, 1]"
