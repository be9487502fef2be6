"""Constraints as plain data, which JSON and YAML have, and back.

    {"regex": "[0-9]+"}
    {"choice": ["yes", "no"]}
    {"json_schema": {"type": "object", ...}, "depth": 3, "whitespace": "compact"}
    {"grammar": "start: ...", "start": "start", "depth": 4}
    {"template": ["Name: ", {"regex": "[A-Z][a-z]+"}, "!", {"hole": null, "tokens": 4}]}
    {"span": {"regex": "[0-9]+"}, "start": 0, "stop": 8}

Options at their default are left out. In place of a pattern, texts, a schema, a grammar or parts
may stand `{"file": "person.json"}`: what is made of it holds what the file holds, and not its name.
A hole's `tokens` are a number, a list of several, "auto" or "cal".
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm.constraints.base import Constraint
from dllm.constraints.choice import Choice
from dllm.constraints.grammar import Grammar
from dllm.constraints.json_schema import JsonSchema
from dllm.constraints.regex import Regex
from dllm.constraints.span import ConstraintSpan
from dllm.constraints.template import Hole, Template
from dllm.options import MismatchError, checked, plain, shown
from dllm.reading import LARGEST_JSON, parse_json, parse_yaml
from dllm.registry import nearest

Written = dict[str, Any]
FILE = "file"  # of {"file": NAME}; no schema has that keyword
REQUIRED = inspect.Parameter.empty
_EXAMPLE = 'such as {"regex": "[0-9]+"}'


@dataclass(frozen=True)
class _Form:
    """How one kind is written."""

    made: type
    read: Callable[[Any, str], Any]  # a value and where it stands -> what the constructor takes
    write: Callable[[Any, bool], Any]  # the same back
    of_text: Callable[[str, str], Any] | None = None  # of a file's text and name; None: no file

    @property
    def first(self) -> str:
        """The parameter that the kind's own key is."""
        return next(iter(inspect.signature(self.made).parameters))

    @property
    def options(self) -> dict[str, Any]:
        """The other parameters with their defaults, REQUIRED for those without."""
        listed = list(inspect.signature(self.made).parameters.values())[1:]
        return {one.name: one.default for one in listed}


def from_plain(value: Any, where: str = "constraint") -> Constraint | ConstraintSpan:
    """Returns the constraint that plain data says; raises ValueError that begins with `where`.

    Files are looked for in the working folder; OSError names one that cannot be read.
    """
    made = _made(value, where, _FORMS)
    assert isinstance(made, Constraint | ConstraintSpan)
    return made


def to_plain(constraint: Constraint | ConstraintSpan) -> Written:
    """Returns plain data of which `from_plain` makes an equal constraint.

    Raises ValueError for a class that is not one of dllm's.
    """
    return _written(constraint, True)


def read_setting(value: Any, name: str = "constraint") -> Any:
    """Returns the value of the setting: constraints as they are, plain data made into them.

    A list is one for each prompt, None for those without.
    """
    if isinstance(value, list | tuple):
        return [_read_one(one, f"{name}[{number}]") for number, one in enumerate(value)]
    return _read_one(value, name)


def write_setting(value: Any) -> Any:
    """Returns plain data of which `read_setting` makes an equal value."""
    if isinstance(value, list):
        return [write_setting(one) for one in value]
    return None if value is None else to_plain(value)


def described(value: Any) -> str:
    """Returns all that the setting's value depends on, as one text: another text, another value.

    It is JSON, whose keys keep their order, since a schema's properties do.
    """
    found = [None if one is None else _written(one, False) for one in _listed(value)]
    return json.dumps(found if isinstance(value, list) else found[0], ensure_ascii=False)


def title_of(value: Any) -> str:
    """Returns a short name of the setting's value as it was written: a file by its name."""
    for kind, one in value.items() if isinstance(value, Mapping) else ():
        if kind in _FORMS and _names_file(one):
            return f"{kind}:{one[FILE]}"
    found = read_setting(value)
    texts = ["none" if one is None else str(one) for one in _listed(found)]
    return ", ".join(texts)


def _read_one(value: Any, where: str) -> Any:
    if value is None or isinstance(value, Constraint | ConstraintSpan):
        return value
    return from_plain(value, where)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _made(value: Any, where: str, forms: Mapping[str, _Form]) -> Any:
    kinds = ", ".join(forms)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{where}={shown(value)} must be a Constraint, or a mapping with one of {kinds}, "
            f"{_EXAMPLE}"
        )
    found = [kind for kind in forms if kind in value]
    if not found:
        unknown, listed = next(iter(value), None), f"known: {kinds}"
        hint = listed if unknown is None else nearest(str(unknown), forms, listed)
        raise ValueError(f"{where}={shown(dict(value))} has no kind: {hint}")
    kind, form = found[0], forms[found[0]]
    options = {key: one for key, one in value.items() if key != kind}
    if len(found) > 1:
        raise ValueError(f"{where} is both {found[0]} and {found[1]}: keep one of them")
    hints = typing.get_type_hints(form.made)
    for key, one in options.items():
        if key not in form.options:
            known = nearest(str(key), form.options) if form.options else f"{kind} is all it has"
            raise ValueError(f"{where}: unknown key {shown(key)} beside {kind}: {known}")
        options[key] = checked(f"{where}: {key}", one, hints[key])
    for key, usual in form.options.items():
        if usual is REQUIRED and key not in options:
            raise ValueError(f"{where}: {kind} needs {key}, {_SPAN}")
    if _names_file(value[kind]):
        argument = _of_file(form, value[kind][FILE], where)
    else:
        argument = form.read(value[kind], f"{where}.{kind}")
    arguments = argument if form.made is Template else (argument,)
    try:
        return form.made(*arguments, **options)
    except (ValueError, ImportError) as error:  # a package that reads it is optional
        raise ValueError(f"{where}: {error}") from None


def _of_file(form: _Form, name: str, where: str) -> Any:
    if form.of_text is None:
        raise ValueError(f"{where}={{'{FILE}': {name!r}}} cannot be in a file: write it here")
    try:
        return form.of_text(read_text(Path(name)), name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _names_file(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {FILE} and isinstance(value[FILE], str)


def read_text(path: Path) -> str:
    """Returns the text of a file; raises ValueError that names it where it has none."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file")
    if not path.exists():
        place = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(f"there is no file {str(path)!r}{place}")
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has more than {LARGEST_JSON} bytes, too many for a constraint")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file in UTF-8: {error}") from None


def _written(value: Any, strict: bool) -> Written:
    known = {**_FORMS, **_HOLES}
    kind = next((kind for kind, form in known.items() if type(value) is form.made), None)
    if kind is None and isinstance(value, Constraint) and not strict:
        return {
            "class": f"{type(value).__module__}.{type(value).__qualname__}",
            "source": value.source,
        }
    if kind is None:
        raise ValueError(
            f"constraint={shown(value)} cannot be written: it is none of {', '.join(_FORMS)}; "
            "leave it out of the settings and give it to the call"
        )
    form = known[kind]
    try:
        options = {
            name: plain(given)
            for name, usual in form.options.items()
            if (given := getattr(value, name)) != usual
        }
    except MismatchError:
        raise ValueError(
            f"constraint={shown(value)} cannot be written: an option is more than numbers and text"
        ) from None
    return {kind: form.write(getattr(value, form.first), strict), **options}


# Values of the kinds.


def _same(value: Any, strict: bool) -> Any:
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{where}={shown(value)} must be text, or {{"file": NAME}}')
    return value


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(
            f"{where}={shown(value)} must be a list of texts: put numbers, yes and no into quotes"
        )
    return value


def _schema(value: Any, where: str) -> Any:
    if not isinstance(value, Mapping | bool):
        raise ValueError(f'{where}={shown(value)} must be a JSON schema, or {{"file": NAME}}')
    return value


def _parts(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}={shown(value)} must be a list of texts and holes")
    return [
        one if isinstance(one, str) else _made(one, f"{where}[{number}]", _HOLES)
        for number, one in enumerate(value)
    ]


def _inner(value: Any, where: str) -> Any:
    return None if value is None else _made(value, where, _LANGUAGES)


def _needed(value: Any, where: str) -> Any:
    return _made(value, where, _LANGUAGES)


def _write_inner(value: Any, strict: bool) -> Any:
    return None if value is None else _written(value, strict)


def _write_parts(value: Any, strict: bool) -> list[Any]:
    return [one if isinstance(one, str) else _write_part(one, strict) for one in value]


def _write_part(hole: Hole, strict: bool) -> Written:
    """Returns a hole; one that has a constraint and nothing else is written as that."""
    written = _written(hole, strict)
    return written["hole"] if len(written) == 1 and written["hole"] is not None else written


def _lines(text: str, name: str) -> list[str]:
    return [line for line in text.split("\n") if line]


def _parts_of(text: str, name: str) -> list[Any]:
    """Returns the parts that a file in JSON or YAML lists, perhaps under the key `template`."""
    value = parse_json(text, name) if name.endswith(".json") else parse_yaml(text)
    if isinstance(value, Mapping) and set(value) == {"template"}:
        value = value["template"]
    return _parts(value, name)


_SPAN = 'such as {"span": {"regex": "[0-9]+"}, "start": 0, "stop": 8}'
_LANGUAGES = {
    "regex": _Form(Regex, _text, _same, lambda text, _: text.removesuffix("\n")),
    "choice": _Form(Choice, _texts, lambda texts, _: list(texts), _lines),
    "json_schema": _Form(JsonSchema, _schema, lambda text, _: parse_json(text, "it"), parse_json),
    "grammar": _Form(Grammar, _text, _same, lambda text, _: text),
    "template": _Form(Template, _parts, _write_parts, _parts_of),
}
_FORMS = {**_LANGUAGES, "span": _Form(ConstraintSpan, _needed, _write_inner)}
_HOLES = {**_LANGUAGES, "hole": _Form(Hole, _inner, _write_inner)}
