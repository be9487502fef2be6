"""Random JSON schemas, texts of automata and values near a schema."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from dllm.constraints.automaton import DEAD, ByteAutomaton, shortest_of

LETTERS = 'ab"\\\n\x01\u00e9\u4e2d\U0001f600/ \x7f'
PATTERNS = ("^a+$", "b", r"^\d{2}-[a-z]*$", "[^a]\\.", "^(a|\u00e9)*$", '"$', r"\s", "^.{3}")
NAMES = ("name", "n", "a b", "\u00e9t\u00e9", 'quo"te', "")


def random_schema(source: random.Random, depth: int) -> dict[str, Any]:
    """Returns a schema of the supported kinds that accepts some value."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum"]
    if depth:
        kinds += ["object", "array", "anyOf", "oneOf", "object", "array"]
    return getattr(_Made(source, depth), source.choice(kinds))()


class _Made:
    """A method for each kind of schema."""

    def __init__(self, source: random.Random, depth: int) -> None:
        self.source = source
        self.depth = depth

    def inner(self) -> dict[str, Any]:
        return random_schema(self.source, self.depth - 1)

    def null(self) -> dict[str, Any]:
        return {"type": "null"}

    def boolean(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def string(self) -> dict[str, Any]:
        kind = self.source.randrange(5)
        if kind == 0:
            return {"type": "string", "pattern": self.source.choice(PATTERNS)}
        if kind == 1:
            least = self.source.randrange(3)
            return {"type": "string", "minLength": least, "maxLength": least + 2}
        if kind == 2:
            formats = ("date", "date-time", "time", "ipv4", "uuid", "email")
            return {"type": "string", "format": self.source.choice(formats)}
        if kind == 3:
            return {"type": "string", "pattern": "^[a-c\u00e9]*$", "minLength": 1, "maxLength": 4}
        return {"type": "string"}

    def integer(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "integer"} | self.limits(0)
        if self.source.random() < 0.2:
            schema["multipleOf"] = self.source.choice((2, 3, 7, 10))
        return schema

    def number(self) -> dict[str, Any]:
        return {"type": "number"} | self.limits(self.source.randrange(4))

    def limits(self, digits: int) -> dict[str, Any]:
        low = round(self.source.uniform(-200, 200), digits)
        high = round(low + self.source.choice((12, 15.5, 200, 5e6)), digits)
        found: dict[str, Any] = {}
        if self.source.random() < 0.6:
            found[self.source.choice(("minimum", "exclusiveMinimum"))] = low
        if self.source.random() < 0.6:
            found[self.source.choice(("maximum", "exclusiveMaximum"))] = high
        return found

    def enum(self) -> dict[str, Any]:
        values: list[Any] = ["a", '\u00e9"', None, True, 3, -1.5, [1, "x"], {"k": None}, 0, False]
        return {"enum": self.source.sample(values, self.source.randrange(1, 4))}

    def object(self) -> dict[str, Any]:
        names = self.source.sample(NAMES, self.source.randrange(4))
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self.inner() for name in names},
            "required": [name for name in names if self.source.random() < 0.5],
        }
        kind = self.source.randrange(4)
        if kind == 0:
            schema["additionalProperties"] = self.inner()
        elif kind == 1:
            schema["additionalProperties"] = False
        return schema

    def array(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array", "items": self.inner()}
        if self.source.random() < 0.5:
            least = self.source.randrange(3)
            schema |= {"minItems": least, "maxItems": least + self.source.randrange(3)}
        if self.source.random() < 0.3:
            schema["prefixItems"] = [self.inner()]
        return schema

    def anyOf(self) -> dict[str, Any]:  # noqa: N802 - named as the keyword
        return {"anyOf": [self.inner(), self.inner()]}

    def oneOf(self) -> dict[str, Any]:  # noqa: N802
        kinds = [
            {
                "type": "object",
                "properties": {"kind": {"const": name}, "value": self.inner()},
                "required": ["kind"],
            }
            for name in ("one", "two")
        ]
        return {"oneOf": [*kinds, {"type": "integer", "maximum": 3}]}


def random_text(automaton: ByteAutomaton, source: random.Random, length: int) -> bytes:
    """Returns an accepted text: a random walk, and from about `length` bytes on a shortest one."""
    shortest = shortest_of(automaton.table, automaton.accepting)
    text, state = bytearray(), automaton.start
    while not (automaton.accepting[state] and (len(text) >= length or source.random() < 0.1)):
        row = automaton.table[state]
        possible = np.flatnonzero(row != DEAD)
        if not len(possible):
            break
        if len(text) >= length:
            possible = possible[shortest[row[possible]] < shortest[state]]
        # As often to each next state, so that the letters of strings are not all there is.
        after = source.choice(sorted(set(row[possible].tolist())))
        text.append(source.choice([byte for byte in possible.tolist() if row[byte] == after]))
        state = after
    return bytes(text)


def near_value(schema: Any, source: random.Random) -> Any:
    """Returns a value that a schema accepts or nearly does, its properties in order."""
    if isinstance(schema, bool) or source.random() < 0.03:
        return source.choice((None, True, 7, -0.5, "a", [], {}, [1]))
    if "anyOf" in schema or "oneOf" in schema:
        return near_value(source.choice(schema.get("anyOf") or schema["oneOf"]), source)
    if "enum" in schema or "const" in schema:
        return source.choice(schema.get("enum") or [schema["const"]])
    kind = schema["type"]
    if kind == "string":
        letters = source.choice((LETTERS, "ab1", "abc\u00e9", "0123456789-"))
        return "".join(source.choice(letters) for _ in range(source.randrange(5)))
    if kind in ("integer", "number"):
        return near_number(schema, source)
    if kind == "array":
        items = [*schema.get("prefixItems", ())]
        count = source.randrange(4)
        return [
            near_value(items[n] if n < len(items) else schema["items"], source)
            for n in range(count)
        ]
    if kind == "object":
        kept = [
            name
            for name in schema["properties"]
            if source.random() < (0.95 if name in schema["required"] else 0.5)
        ]
        return {name: near_value(schema["properties"][name], source) for name in kept}
    return None if kind == "null" else source.random() < 0.5


def near_number(schema: dict[str, Any], source: random.Random) -> int | float:
    """Returns a number at, beside or between the limits of a schema."""
    limits = [schema[name] for name in schema if name.lower().endswith("imum")] or [0]
    if schema["type"] == "integer":
        return int(source.choice(limits)) + source.randrange(-3, 4)
    value = source.choice(limits) + source.choice((0, 0.1, -0.1, 0.001, -0.001, 1, -1, 10.5))
    return round(value, source.randrange(1, 5))
