"""Finds the one-file parts (schedulers, caches) by their file names and builds them from text."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from types import ModuleType
from typing import Any, Generic, TypeVar

import yaml

Part = TypeVar("Part")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known names as text, those most like `name` first."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    ordered = close + [other for other in names if other not in close]
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(ordered)}"


class Options:
    """The options of a part, which are checked where they enter."""

    def _check_least(self, least: int, *names: str, why: str = "") -> None:
        """Raises ValueError when one of some options is less than `least`; None is no number."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}{why}")


class Registry(Generic[Part]):
    """The parts of one folder: a module that defines a subclass of `base` is a part.

    A part's name in configurations and on the command line is its file's name.
    """

    def __init__(self, package: ModuleType, base: type[Part], noun: str) -> None:
        self.package = package
        self.base = base
        self.noun = noun

    def names(self) -> list[str]:
        """Lists the parts' names in alphabetical order."""
        modules = (module.name for module in pkgutil.iter_modules(self.package.__path__))
        return sorted(name for name in modules if self._find(name) is not None)

    def get(self, name: str) -> type[Part]:
        """Returns the class of a part; raises ValueError that lists the known ones."""
        found = self._find(name) if name.isidentifier() else None
        if found is None:
            raise ValueError(f"unknown {self.noun} {name!r}: {nearest(name, self.names())}")
        return found

    def create(self, given: str | Mapping[str, Any] | Part) -> Part:
        """Builds a part from `"name"`, `"name:0.8"`, `"name:option=value,..."` or a mapping.

        A part is returned as it is. A value without a name sets the part's first option;
        `"name@preset"` starts from published options. A mapping holds `name` and options. An
        option that is a part itself is written the same way, in a short form without commas; one
        that is several numbers as `option=[1, 2]`, or as the only number.
        """
        if isinstance(given, self.base):
            return given
        if isinstance(given, str):
            name, options = self._parse(given)
        elif isinstance(given, Mapping):
            options = dict(given)
            name = options.pop("name", None)
            if not isinstance(name, str):
                raise ValueError(f"a {self.noun} mapping needs a 'name': {dict(given)!r}")
        else:
            raise TypeError(
                f"a {self.noun} is a name, a mapping or a {self.base.__name__}, "
                f"not {type(given).__name__}"
            )
        return self._build(name, options)

    def _parse(self, text: str) -> tuple[str, dict[str, Any]]:
        head, _, rest = text.partition(":")
        name, _, preset = (part.strip() for part in head.partition("@"))
        options = self._preset(name, preset) if preset else {}
        items = re.split(r",(?![^\[]*\])", rest)  # not at the commas of a list
        for index, item in enumerate(part.strip() for part in items if part.strip()):
            key, equals, value = item.partition("=")
            if not equals:
                fields = self._fields(name)
                if index > 0 or not fields:
                    raise ValueError(f"{self.noun} {text!r}: write {item!r} as option=value")
                key, value = next(iter(fields)), item
            options[key.strip()] = _read(value)
        return name, options

    def _preset(self, name: str, preset: str) -> dict[str, Any]:
        known: Mapping[str, Mapping[str, Any]] = getattr(self.get(name), "presets", {})
        if preset not in known:
            raise ValueError(
                f"{self.noun} {name!r} has no preset {preset!r}: {nearest(preset, known)}"
            )
        return dict(known[preset])

    def _build(self, name: str, options: Mapping[str, Any]) -> Part:
        part, fields = self.get(name), self._fields(name)
        known: Any = part
        hints, built = _hints(known) if options else {}, dict(options)
        for key, value in options.items():
            if key not in fields:
                raise ValueError(
                    f"{self.noun} {name!r} has no option {key!r}: {nearest(key, fields)}"
                )
            if hints[key] is self.base:
                built[key] = self.create(value)
                continue
            if typing.get_origin(hints[key]) is tuple:
                value = built[key] = _as_tuple(value)
            if not _fits(value, hints[key]):
                raise ValueError(
                    f"{self.noun} {name!r}: {key}={value!r} must be {fields[key].type}"
                )
        return part(**built)

    def _fields(self, name: str) -> dict[str, dataclasses.Field[Any]]:
        part: Any = self.get(name)
        return {field.name: field for field in dataclasses.fields(part) if field.init}

    def _find(self, name: str) -> type[Part] | None:
        whole = f"{self.package.__name__}.{name}"
        try:
            module = importlib.import_module(whole)
        except ModuleNotFoundError as error:
            if error.name != whole:  # what is missing is something that the module needs
                raise
            return None
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, self.base)
                and not inspect.isabstract(value)
                and value.__module__ == module.__name__
            ):
                return value
        return None


@cache
def _hints(part: Any) -> dict[str, Any]:
    """Returns the types of a part's options."""
    return typing.get_type_hints(part)


def _read(text: str) -> Any:
    """Returns a value as YAML has it, and 1e-3, which YAML takes for text, as a number."""
    value = yaml.safe_load(text)
    if isinstance(value, str) and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _as_tuple(value: Any) -> Any:
    """Returns a list as a tuple, which YAML and JSON do not have, and a number as one of one."""
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, int | float) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from text or YAML has the annotated type; an int passes as a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:  # of any length, of one type
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or hint) if isinstance(origin or hint, type) else True
