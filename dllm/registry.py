"""The parts of a decoding (schedulers, caches, verifiers): found by name and built from text.

A file of the part's folder is a part under the file's name. So is what an installed package
declares (entry points `dllm.schedulers`, `dllm.caches`, `dllm.verifiers`), and any class that is
named as `module:Class` or `path/file.py:Class`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from dllm.options import Options, shown
from dllm.reading import parse_yaml

Kind = TypeVar("Kind")

_FEW = 5  # names that a message lists
# `where:Class`, then a preset or options: where is a module, or a file.
_OWN = re.compile(r"(?P<where>.+?\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)(?P<rest>[@:,].*)?")


def nearest(name: str, known: Iterable[str], see: str = "") -> str:
    """Returns which known names were perhaps meant, five at most; `see` tells where all are."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=_FEW, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else ""
    if len(names) <= _FEW:
        return f"{hint} known: {', '.join(names) or 'none'}".strip()
    return f"{hint} {see or f'there are {len(names)}, none like it' * (not close)}".strip()


class Part(Options):
    """A scheduler, cache or verifier: a frozen dataclass of options."""

    def summary(self) -> dict[str, Any]:
        """Returns the name and options as a mapping that builds the same part again."""
        options = {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}  # type: ignore[arg-type]
        plain = {k: v.summary() if isinstance(v, Part) else v for k, v in options.items()}
        return {"name": name_of(type(self)), **plain}


def name_of(part: type) -> str:
    """Returns the name that a part's class is found by."""
    if part.__module__.partition(".")[0] == "dllm":
        return part.__module__.rpartition(".")[2]
    return _REFERENCES.get(part) or f"{part.__module__}:{part.__qualname__}"


_REFERENCES: dict[Any, str] = {}  # of classes that were found by another name than their own


class Registry(Generic[Kind]):
    """The parts of one folder, and those of other packages and of the user's own files."""

    def __init__(self, package: ModuleType, base: type[Kind], noun: str) -> None:
        self.package = package
        self.base = base
        self.noun = noun

    def names(self) -> list[str]:
        """Lists the parts' names in alphabetical order."""
        modules = (module.name for module in pkgutil.iter_modules(self.package.__path__))
        own = {name for name in modules if self._find(name) is not None}
        return sorted(own | _declared(self.noun).keys())

    def get(self, name: str) -> type[Kind]:
        """Returns the class of a part; raises ValueError that names the nearest known ones."""
        found = self._find(name)
        if found is None and name in _declared(self.noun):
            found = self._checked(_declared(self.noun)[name].load(), name)
        if found is None and (own := _OWN.fullmatch(name)):
            found = self._own(own["where"], own["name"])
        if found is None:
            hint = nearest(name, self.names(), "`dllm methods` lists all")
            raise ValueError(f"unknown {self.noun} {name!r}: {hint}")
        return found

    def create(self, given: str | Mapping[str, Any] | Kind) -> Kind:
        """Builds a part from `"name"`, `"name:0.8"`, `"name:option=value,..."` or a mapping.

        A part is returned as it is. A value without a name sets the part's first option;
        `"name@preset"` starts from published options. A mapping holds `name` and options. An
        option that is a part itself is written the same way, in a short form without commas; one
        that is several numbers as `option=[1, 2]`, or as the only number. A name may be that of a
        class elsewhere: `"module:Class,option=value"`, `"path/file.py:Class"`.
        """
        if isinstance(given, self.base):
            return given
        if isinstance(given, str):
            part, options = self._parse(given)
        elif isinstance(given, Mapping):
            options = dict(given)
            name = options.pop("name", None)
            if not isinstance(name, str | type):
                raise ValueError(f"a {self.noun} mapping needs a 'name': {dict(given)!r}")
            part = self.get(name) if isinstance(name, str) else self._checked(name, str(name))
        else:
            raise TypeError(
                f"a {self.noun} is a name, a mapping or a {self.base.__name__}, "
                f"not {type(given).__name__}"
            )
        return self._build(part, options)

    def _parse(self, text: str) -> tuple[type[Kind], dict[str, Any]]:
        head, rest = self._split(text)
        name, _, preset = (word.strip() for word in head.partition("@"))
        part = self.get(name)
        options, known = self._preset(part, preset) if preset else {}, _fields(part)
        items = re.split(r",(?![^\[]*\])", rest)  # not at the commas of a list
        for index, item in enumerate(word.strip() for word in items if word.strip()):
            key, equals, value = item.partition("=")
            if not equals:
                if index > 0 or not known:
                    raise ValueError(f"{self.noun} {text!r}: write {item!r} as option=value")
                key, value = next(iter(known)), item
            options[key.strip()] = _read(value, f"{self.noun} {text!r}")
        return part, options

    def _split(self, text: str) -> tuple[str, str]:
        """Returns the name with its preset, and the options; a class's name has a colon in it."""
        own = _OWN.fullmatch(text)
        if own is None or self._is_known(own["where"]):
            head, _, rest = text.partition(":")
            return head, rest
        rest = own["rest"] or ""
        preset, _, options = rest.partition(":") if rest.startswith("@") else ("", "", rest)
        return f"{own['where']}:{own['name']}{preset}", options.lstrip(":,")

    def _preset(self, part: type[Kind], preset: str) -> dict[str, Any]:
        known: Mapping[str, Mapping[str, Any]] = getattr(part, "presets", {})
        if preset not in known:
            name = name_of(part)
            raise ValueError(
                f"{self.noun} {name!r} has no preset {preset!r}: "
                f"{nearest(preset, known, f'`dllm methods {name}` lists all')}"
            )
        return dict(known[preset])

    def _build(self, part: type[Kind], options: Mapping[str, Any]) -> Kind:
        known, name = _fields(part), name_of(part)
        hints: dict[str, Any] = _hints(part) if options else {}  # type: ignore[arg-type]
        built = dict(options)
        for key, value in options.items():
            if key not in known:
                see = f"`dllm methods {name}` lists all"
                raise ValueError(
                    f"{self.noun} {name!r} has no option {key!r}: {nearest(key, known, see)}"
                )
            if hints[key] is self.base:
                built[key] = self.create(value)
        try:
            return part(**built)
        except ValueError as error:
            raise ValueError(f"{self.noun} {name!r}: {error}") from error

    def _is_known(self, name: str) -> bool:
        return self._find(name) is not None or name in _declared(self.noun)

    def _find(self, name: str) -> type[Kind] | None:
        if not name.isidentifier():
            return None
        whole = f"{self.package.__name__}.{name}"
        try:
            module = importlib.import_module(whole)
        except ModuleNotFoundError as error:
            if error.name != whole:  # what is missing is something that the module needs
                raise
            return None
        for value in vars(module).values():
            if self._is_part(value) and value.__module__ == module.__name__:
                return typing.cast("type[Kind]", value)
        return None

    def _own(self, where: str, name: str) -> type[Kind] | None:
        """Returns a class of the user's own module or file; None where there is no module."""
        module = _module_of(where)
        if module is None:
            return None
        if not hasattr(module, name):
            there = [key for key, value in vars(module).items() if self._is_part(value)]
            raise ValueError(
                f"{where!r} has no {name!r}: {self.noun}s in it: {', '.join(there) or 'none'}"
            )
        return self._checked(getattr(module, name), f"{where}:{name}")

    def _checked(self, value: Any, name: str) -> type[Kind]:
        """Returns a class that was found by a name; raises ValueError unless it is a part."""
        if not self._is_part(value) or not dataclasses.is_dataclass(value):
            raise ValueError(
                f"{self.noun} {name!r} is {value!r}: it must be a dataclass that derives from "
                f"{self.package.__name__}.{self.base.__name__} and defines its abstract methods"
            )
        if ":" in name or name in _declared(self.noun):
            _REFERENCES[value] = name
        return typing.cast("type[Kind]", value)

    def _is_part(self, value: Any) -> bool:
        # A generic alias such as Mapping[str, int] is an instance of `type` before Python 3.11.
        is_class = isinstance(value, type) and typing.get_origin(value) is None
        return is_class and issubclass(value, self.base) and not inspect.isabstract(value)


def _declared(noun: str) -> dict[str, EntryPoint]:
    """Returns what installed packages declare as parts of a kind, by name."""
    return declared(f"dllm.{noun}s")


@cache
def declared(group: str) -> dict[str, EntryPoint]:
    """Returns what installed packages declare in a group, by name."""
    return {entry.name: entry for entry in entry_points(group=group)}


def own_object(name: str, group: str) -> Any:
    """Returns what a package declares under a name, or what `module:Name` is; None: neither."""
    if name in declared(group):
        return declared(group)[name].load()
    own = _OWN.fullmatch(name)
    module = _module_of(own["where"]) if own is not None and not own["rest"] else None
    if own is None or module is None:
        return None
    if not hasattr(module, own["name"]):
        raise ValueError(f"{own['where']!r} has no {own['name']!r}")
    return getattr(module, own["name"])


def _module_of(where: str) -> ModuleType | None:
    """Returns a module by its name, in the working folder too, or by its file; None: no module."""
    if not where.endswith(".py"):
        here = str(Path.cwd())
        sys.path.append(here)
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not where.startswith(error.name):
                raise
            return None
        finally:
            sys.path.remove(here)
    file = Path(where).expanduser()
    if not file.is_file():
        raise ValueError(f"{where}: no such file; a class of one is named as path/file.py:Class")
    # What is in the file is in the name: an edited file is another module.
    digest = hashlib.sha256(str(file.resolve()).encode() + file.read_bytes()).hexdigest()[:12]
    name = f"{file.stem}_{digest}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _fields(part: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(part) if field.init}


@cache
def _hints(part: Any) -> dict[str, Any]:
    """Returns the types of a part's options."""
    return typing.get_type_hints(part)


def _read(text: str, where: str) -> Any:
    """Returns a value as YAML has it, and 1e-3, which YAML takes for text, as a number."""
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ValueError(
            f"{where}: {shown(text)} is no value: write a number, true, null, a word, or a list "
            f"such as [1, 2]; text with other signs in quotes ({error})"
        ) from error
    if isinstance(value, str) and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value
