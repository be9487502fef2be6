"""The settings that options say, with those of a file and of a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dllm.cli.shown import say
from dllm.constraints.base import Constraint
from dllm.constraints.grammar import Grammar as ContextFree
from dllm.constraints.template import Template
from dllm.constraints.written import FILE, from_plain
from dllm.options import checked, shown
from dllm.reading import parse_json, parse_yaml, read_yaml
from dllm.settings import Settings, resolve


def collect(
    more: Sequence[str] | None,
    max_new_tokens: int | None = None,
    block_length: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    **parts: Any,
) -> dict[str, Any]:
    """Returns the settings that were given, by option or by `--set name=value`."""
    options = {"max_new_tokens": max_new_tokens, "block_length": block_length, **parts}
    options |= {"temperature": temperature, "seed": seed}
    settings = {name: value for name, value in options.items() if value is not None}
    for item in more or ():
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals:
            raise ValueError(f"--set {item!r}: write it as name=value")
        if name in settings:
            raise ValueError(f"--set {item!r}: {name} is given twice, leave one of them out")
        settings[name] = yaml_value(value, f"--set {item!r}")
    return settings


def read_config(path: Path | None) -> Mapping[str, Any]:
    """Returns the settings that a file names, none without a file.

    Raises ValueError that names the file and the setting for what cannot be one.
    """
    if path is None:
        return {}
    if path.is_dir():
        raise ValueError(f"--config {path} is a folder: name a JSON or YAML file")
    json = path.suffix == ".json"
    named = parse_json(path.read_bytes(), path) if json else read_yaml(path)
    try:
        Settings.from_json(named if named is not None else {})  # an empty file is no mapping
    except (ValueError, TypeError) as error:
        raise ValueError(f"--config {path}: {error}") from None
    return named or {}


def over(
    config: Mapping[str, Any], given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Settings:
    """Returns the settings of a command over those of a file, over a checkpoint's defaults."""
    base = resolve(defaults, None, config) if config else None
    return resolve(defaults, base, given)


def yaml_value(text: str, where: str) -> Any:
    """Returns what a text says in YAML; raises ValueError that begins with `where`."""
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ValueError(
            f"{where}: {shown(text)} is not a YAML value, such as 3, true or [1, 2]: put a text "
            f"with signs in it into quotes ({error})"
        ) from None


def constraint_of(
    regex: str | None,
    json_schema: Path | None,
    grammar: Path | None,
    choice: list[str] | None,
    joint: str | None,
    method: str | None = None,
) -> dict[str, Any]:
    """Returns the settings that these options are, those not given left out.

    Raises ValueError, without any model, for two kinds at once and for what no text fulfils.
    """
    files = {"json_schema": json_schema, "grammar": grammar}
    named = {kind: {FILE: str(path)} for kind, path in files.items() if path is not None}
    texts = {"regex": regex, "choice": choice or None}
    given: dict[str, Any] = {kind: one for kind, one in texts.items() if one is not None} | named
    if len(given) > 1:
        first, second = (f"--{kind.replace('_', '-')}" for kind in list(given)[:2])
        raise ValueError(f"{first} and {second} both say what an answer is: keep one of them")
    if method is not None and grammar is None:
        raise ValueError(f"--grammar-method={method} is of --grammar, which is not given")
    found: dict[str, Any] = {}
    if joint is not None:
        found["joint"] = checked("--joint", joint, Literal["confidence", "map"])
    for kind, one in given.items():
        option = f"--{kind.replace('_', '-')}"
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            options = {} if method is None else {"method": method}
            constraint = from_plain({kind: one, **options}, option)
        for warning in warned:  # of Python's re, about what may be meant otherwise
            say(f"warning: {option}: {warning.message}")
        assert isinstance(constraint, Constraint)
        _check(constraint, option)
        found["constraint"] = constraint
    return found


def template_of(path: Path | None) -> dict[str, Any]:
    """Returns the setting that a file with a template is; raises ValueError, without any model."""
    if path is None:
        return {}
    template = from_plain({"template": {FILE: str(path)}}, "--template")
    assert isinstance(template, Template)
    for hole in template.holes:
        if hole.constraint is not None:
            _check(hole.constraint, "--template")
    return {"template": template}


def _check(constraint: Constraint, option: str) -> None:
    """Raises ValueError where no text fulfils it, or it is too large: before a model is loaded."""
    try:
        constraint.check() if isinstance(constraint, ContextFree) else constraint.byte_automaton()
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
