"""The keywords of JSON schema that are understood, their values, and the types they speak of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from dllm.constraints.json_schema.numbers import Limits
from dllm.constraints.json_schema.text import FORMATS

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
ANNOTATIONS = (
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions"),
)
BY_TYPE = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
}
# Each of these alone says all, beside annotations; a type may choose among constants.
ALONE = ("$ref", "allOf", "anyOf", "oneOf", "const", "enum")
KNOWN = ("type", *ALONE, *(name for names in BY_TYPE.values() for name in names), *ANNOTATIONS)


_LARGEST = 10**30  # of a limit: its digits are written out


class SchemaError(ValueError):
    """A schema that is none, or that says what is not supported."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"JSON schema: {path} {reason}")


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -_LARGEST <= value <= _LARGEST


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_types(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(one in TYPES for one in values)


def _is_schema(value: Any) -> bool:
    return isinstance(value, bool | dict)


def _is_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


_COUNT = (_is_count, "an integer of at least 0")
_NUMBER = (_is_number, "a number of at most 30 digits before the point")
_SCHEMA, _SCHEMAS = (_is_schema, "a schema"), (_is_schemas, "a list of schemas")
_TEXT = (lambda value: isinstance(value, str), "a string")
_MUST_BE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_types, f"one of {', '.join(TYPES)}, or a list of them"),
    "$ref": _TEXT,
    "allOf": _SCHEMAS,
    "anyOf": _SCHEMAS,
    "oneOf": _SCHEMAS,
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list of values"),
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "pattern": _TEXT,
    "format": (
        lambda value: isinstance(value, str) and value in FORMATS,
        f"one of {', '.join(FORMATS)}: others are not known",
    ),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "items": (_is_schema, "a schema; a list of them is prefixItems"),
    "prefixItems": _SCHEMAS,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "properties": (
        lambda value: isinstance(value, dict) and all(map(_is_schema, value.values())),
        "an object of schemas",
    ),
    "required": (_is_texts, "a list of strings"),
    "additionalProperties": _SCHEMA,
}


def checked(schema: Any, path: str) -> Any:
    """Returns a schema all of whose keywords are known and have values of their kind.

    Raises SchemaError otherwise, for keywords that cannot stand together too.
    """
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise SchemaError(path, f"is {schema!r}, and a schema is an object, true or false")
    for name, value in schema.items():
        if name not in KNOWN:
            rules = [one for one in KNOWN if one not in ANNOTATIONS]
            raise SchemaError(
                f"{path}/{name}", f"is not supported; known keywords are {', '.join(rules)}"
            )
        holds, kind = _MUST_BE.get(name, (lambda _: True, ""))
        if not holds(value):
            raise SchemaError(f"{path}/{name}", f"is {value!r}, and must be {kind}")
    _check_together(schema, path)
    return schema


def _check_together(schema: Mapping[str, Any], path: str) -> None:
    alone = [name for name in ALONE if name in schema]
    allowed = {*ANNOTATIONS, *alone[:1]}
    if alone and alone[0] in ("const", "enum"):
        allowed.add("type")
    beside = [name for name in schema if name not in allowed]
    if alone and beside:
        raise SchemaError(
            f"{path}/{beside[0]}", f"is not supported beside {alone[0]}: write them as one"
        )
    if len(schema.get("allOf", ())) > 1:
        raise SchemaError(f"{path}/allOf", "is supported with one schema only: write them as one")


def kinds_of(schema: Any) -> tuple[str, ...]:
    """Returns the types of the values that are written, none where the schema says nothing.

    Without a type these are the types that the other keywords speak of.
    """
    if isinstance(schema, bool):
        return TYPES if not schema else ()
    if "type" in schema:
        named = schema["type"]
        kinds = named if isinstance(named, list) else [named]
        # An integer is a number.
        return tuple(k for k in TYPES if k in kinds and not (k == "integer" and "number" in kinds))
    if any(name in schema for name in ALONE):
        return TYPES
    return tuple(kind for kind, names in BY_TYPE.items() if any(name in schema for name in names))


def type_of(value: Any, as_integer: bool = False) -> str:
    """Returns the type of a value, of a number "integer" if that is asked for and it is whole."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if as_integer and value == int(value) else "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def limits_of(schema: Mapping[str, Any]) -> Limits:
    """Returns the range of numbers of a schema."""
    least, above = _tightest(schema, ("minimum", "exclusiveMinimum"), 1)
    most, below = _tightest(schema, ("maximum", "exclusiveMaximum"), -1)
    return Limits(least, most, above, below)


def _tightest(
    schema: Mapping[str, Any], names: tuple[str, str], sign: int
) -> tuple[Decimal | None, bool]:
    found = [
        (sign * Decimal(str(schema[name])), open_end)
        for name, open_end in zip(names, (False, True), strict=True)
        if name in schema
    ]
    if not found:
        return None, False
    limit, open_end = max(found)
    return sign * limit, open_end


def pointed_at(root: Any, reference: str, path: str) -> Any:
    """Returns the schema that a reference inside the same schema names."""
    if not (reference == "#" or reference.startswith("#/")):
        raise SchemaError(path, f"is {reference!r}: references are inside the schema, as #/$defs/x")
    found = root
    for part in reference.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            raise SchemaError(path, f"is {reference!r}, which is nowhere in the schema")
    return found
