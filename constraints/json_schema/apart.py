"""Whether no value is valid by two schemas at once, as oneOf wants it of its branches."""

from __future__ import annotations

from typing import Any

from dllm.constraints.json_schema.keywords import checked, limits_of, pointed_at, type_of

_MOST_REFERENCES = 100
_NUMERIC = {"integer", "number"}


def apart(one: Any, other: Any, root: Any, path: str) -> bool:
    """Returns whether two schemas surely accept no value in common.

    They do not where their types, constants or ranges of numbers differ, or those of a property
    that both require. Other schemas may be apart as well, and get False.
    """
    one, other = _resolved(one, root, path), _resolved(other, root, path)
    if one is False or other is False:
        return True
    if one is True or other is True:
        return False
    for name in ("anyOf", "oneOf"):
        for this, that in ((one, other), (other, one)):
            if name in this:
                return all(apart(branch, that, root, path) for branch in this[name])
    values, others = _constants(one), _constants(other)
    if values is not None and others is not None:
        return not any(_equal(a, b) for a in values for b in others)
    types = _types(one), _types(other)
    if not types[0] & types[1]:
        return True
    if types[0] | types[1] <= _NUMERIC and values is None and others is None:
        return limits_of(one).apart(limits_of(other))
    if types[0] == types[1] == {"object"} and values is None and others is None:
        shared = set(one.get("required", ())) & set(other.get("required", ()))
        known = [schema.get("properties", {}) for schema in (one, other)]
        pairs = [(known[0].get(name, True), known[1].get(name, True)) for name in sorted(shared)]
        return any(apart(*pair, root, path) for pair in pairs)
    return False


def _resolved(schema: Any, root: Any, path: str) -> Any:
    """Returns what a schema refers to, as long as it only refers."""
    for _ in range(_MOST_REFERENCES):
        schema = checked(schema, path)
        if isinstance(schema, bool):
            return schema
        if "$ref" in schema:
            schema = pointed_at(root, schema["$ref"], path)
        elif "allOf" in schema:
            (schema,) = schema["allOf"]
        else:
            return schema
    return True  # a circle


def _constants(schema: Any) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema.get("enum")


def _types(schema: Any) -> set[str]:
    """Returns the types of the values that a schema may accept, an integer being a number."""
    values = _constants(schema)
    if values is not None:
        return {type_of(value) for value in values}
    named = schema.get("type", ["null", "boolean", "number", "string", "array", "object"])
    kinds = {named} if isinstance(named, str) else set(named)
    return {"number" if kind == "integer" else kind for kind in kinds}


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are one to JSON, where true is not 1."""
    if type_of(one) != type_of(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    return bool(one == other)
