"""From a JSON schema to an expression; whatever is not understood is refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from dllm.constraints.json_schema.apart import apart
from dllm.constraints.json_schema.keywords import (
    SchemaError,
    checked,
    kinds_of,
    limits_of,
    pointed_at,
    type_of,
)
from dllm.constraints.json_schema.numbers import Limits, integers, numbers
from dllm.constraints.json_schema.text import (
    CHARACTER,
    comma,
    constant,
    format_of,
    key,
    quoted,
    spell,
    string,
)
from dllm.constraints.regex import Reading, expression_of
from dllm.constraints.regular.determinise import MAX_STATES
from dllm.constraints.regular.expression import (
    EMPTY,
    NOTHING,
    Both,
    Either,
    Expression,
    Network,
    Repeated,
    Without,
    joined,
    listed,
    literal,
    one_of,
    optional,
    spelled,
)

_MOST_SCHEMAS = 20_000  # that are read, those inside themselves again at each depth
_MOST_MULTIPLE = 1000  # of multipleOf: an automaton has a state for each remainder


class Reader:
    """Reads one schema; `cut` then says whether values were left out for being too deep."""

    def __init__(self, root: Any, depth: int, gap: Expression) -> None:
        self.root = root
        self.depth = depth
        self.gap = gap
        self.cut = False
        self._inside: Counter[str] = Counter()  # of each $ref, how often it is being read
        self._known: dict[tuple[str, frozenset[tuple[str, int]]], Expression] = {}
        self._read = 0

    def value(self, schema: Any, path: str) -> Expression:
        """Returns the texts of the values that a schema accepts; `path` is its place."""
        schema = checked(schema, path)
        self._read += 1
        if self._read > _MOST_SCHEMAS:
            raise SchemaError(path, f"is one of more than {_MOST_SCHEMAS} schemas: lower the depth")
        if schema is True or not kinds_of(schema):
            return self._any_value(self.depth)
        if schema is False:
            return NOTHING
        for name in ("$ref", "allOf", "anyOf", "oneOf", "const", "enum"):
            if name in schema:
                return self._combined(name, schema, path)
        return one_of(*(self._typed(kind, schema, path) for kind in kinds_of(schema)))

    def _combined(self, name: str, schema: Mapping[str, Any], path: str) -> Expression:
        """Returns what one keyword says that no other limits."""
        value, where = schema[name], f"{path}/{name}"
        if name == "$ref":
            return self._referred(value, where)
        if name in ("allOf", "anyOf", "oneOf"):
            if name == "oneOf":
                self._check_apart(value, where)
            return one_of(*(self.value(one, f"{where}/{n}") for n, one in enumerate(value)))
        kinds = kinds_of(schema)
        values = value if name == "enum" else [value]
        found = [one for one in values if type_of(one) in kinds or type_of(one, True) in kinds]
        if not found:
            raise SchemaError(where, f"has no value of type {' or '.join(kinds)}")
        try:
            return one_of(*(constant(one, self.gap) for one in found))
        except ValueError as error:
            raise SchemaError(where, f"is not supported: {error}") from None

    def _referred(self, reference: str, path: str) -> Expression:
        if self._inside[reference] > self.depth:
            self.cut = True
            return NOTHING
        within = (reference, frozenset(self._inside.items()))
        if within not in self._known:
            self._inside[reference] += 1
            found = self.value(pointed_at(self.root, reference, path), reference)
            self._inside[reference] -= 1
            self._known[within] = found
        return self._known[within]

    def _check_apart(self, branches: list[Any], path: str) -> None:
        for second, other in enumerate(branches):
            for first, one in enumerate(branches[:second]):
                if not apart(one, other, self.root, path):
                    raise SchemaError(
                        path,
                        f"is not supported here: branches {first} and {second} may both accept a "
                        "value; give them different types, or a required property with different "
                        "constants, or write anyOf",
                    )

    def _typed(self, kind: str, schema: Mapping[str, Any], path: str) -> Expression:
        """Returns the values of one type."""
        if kind == "null":
            return literal("null")
        if kind == "boolean":
            return one_of(literal("true"), literal("false"))
        if kind == "string":
            return self._string(schema, path)
        if kind == "array":
            return self._array(schema, path)
        if kind == "object":
            return self._object(schema, path)
        limits = limits_of(schema)
        if kind == "integer":
            return integers(limits, self._multiple(schema, path))
        if "multipleOf" in schema:
            raise SchemaError(f"{path}/multipleOf", 'is supported beside "type": "integer" only')
        return numbers(limits)

    def _multiple(self, schema: Mapping[str, Any], path: str) -> int:
        multiple = Decimal(str(schema.get("multipleOf", 1)))
        if multiple != int(multiple) or multiple > _MOST_MULTIPLE:
            raise SchemaError(
                f"{path}/multipleOf", f"is supported for integers up to {_MOST_MULTIPLE} only"
            )
        return int(multiple)

    def _string(self, schema: Mapping[str, Any], path: str) -> Expression:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        inside: list[Expression] = []
        if "pattern" in schema:
            inside.append(spelled(self._pattern(schema["pattern"], f"{path}/pattern"), spell))
        if "format" in schema:
            inside.append(spelled(format_of(schema["format"]), spell))
        if least or most is not None or not inside:
            inside.append(Repeated(CHARACTER, int(least), None if most is None else int(most)))
        found = inside[0]
        for other in inside[1:]:
            found = Both(found, other)
        return quoted(found)

    def _pattern(self, pattern: str, path: str) -> Expression:
        try:
            return expression_of(pattern, Reading(search=True, strict=True))
        except ValueError as error:
            raise SchemaError(path, f"is not supported: {error}") from None

    def _array(self, schema: Mapping[str, Any], path: str) -> Expression:
        """Returns arrays: node i of a graph stands after i items."""
        first = [
            self.value(one, f"{path}/prefixItems/{number}")
            for number, one in enumerate(schema.get("prefixItems", ()))
        ]
        rest = self.value(schema.get("items", True), f"{path}/items")
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        last = max(least, len(first), 1) if most is None else int(most)
        if max(least, last) > MAX_STATES:
            raise SchemaError(path, f"has more than {MAX_STATES} items, too many for an automaton")
        edges: list[tuple[int, Expression, int]] = []
        for number in range(last):
            item = first[number] if number < len(first) else rest
            edges.append((number, joined(comma(self.gap), item) if number else item, number + 1))
        if most is None:
            edges.append((last, joined(comma(self.gap), rest), last))
        edges += [(number, EMPTY, -1) for number in range(least, last + 1)]
        return joined(literal("["), Network(tuple(edges), 0, -1), literal("]"))

    def _object(self, schema: Mapping[str, Any], path: str) -> Expression:
        """Returns objects: properties in order, then others if they are allowed.

        Nodes of the graph before property i are (3 i) while there is none, (3 i + 1) after others,
        and (3 i + 2) once it is decided that it stands there, after the comma.
        """
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        required = set(schema.get("required", ()))
        unnamed = dict.fromkeys(schema.get("required", ()), others is None or others)
        edges: list[tuple[int, Expression, int]] = []
        names = [*known, *(name for name in unnamed if name not in known)]
        for number, name in enumerate(names):
            where = f"{path}/properties/{name}"
            value = self.value(known[name] if name in known else unnamed[name], where)
            edges += self._property(number, joined(key(name, self.gap), value), name in required)
        end = 3 * len(names)
        edges += [(end, EMPTY, -1), (end + 1, EMPTY, -1)]
        if others is not None and others is not False:
            key_of_others = quoted(Repeated(CHARACTER))
            if names:
                key_of_others = Without(key_of_others, Either(tuple(map(string, names))))
            value = self.value(others, f"{path}/additionalProperties")
            pair = joined(key_of_others, literal(":"), self.gap, value)
            edges += [
                (end, EMPTY, end + 2),
                (end + 1, comma(self.gap), end + 2),
                (end + 2, listed(pair, comma(self.gap)), -1),
            ]
        return joined(literal("{"), Network(tuple(edges), 0, -1), literal("}"))

    def _property(
        self, number: int, pair: Expression, required: bool
    ) -> list[tuple[int, Expression, int]]:
        none, some, here = 3 * number, 3 * number + 1, 3 * number + 2
        found = [(none, EMPTY, here), (here, pair, some + 3)]
        if number:
            found.append((some, comma(self.gap), here))
        if not required:
            found += [(none, EMPTY, none + 3), (some, EMPTY, some + 3)]
        return found

    def _any_value(self, depth: int) -> Expression:
        """Returns every value, of arrays and objects those that are not deeper."""
        scalar = one_of(
            *(literal(word) for word in ("null", "true", "false")),
            quoted(Repeated(CHARACTER)),
            numbers(Limits()),
        )
        self.cut = True
        if not depth:
            return scalar
        inner = self._any_value(depth - 1)
        pair = joined(quoted(Repeated(CHARACTER)), literal(":"), self.gap, inner)
        array = joined(literal("["), optional(listed(inner, comma(self.gap))), literal("]"))
        mapping = joined(literal("{"), optional(listed(pair, comma(self.gap))), literal("}"))
        return one_of(scalar, array, mapping)
