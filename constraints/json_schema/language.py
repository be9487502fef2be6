"""`JsonSchema`: the texts of JSON values that are valid by a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dllm.constraints.automaton import ByteAutomaton
from dllm.constraints.base import Constraint, Kind
from dllm.constraints.json_schema.reader import Reader
from dllm.constraints.regular.determinise import automaton_of
from dllm.constraints.regular.expression import EMPTY, Expression, literal, optional
from dllm.reading import parse_json

Whitespace = Literal["compact", "spaced"]
_GAPS = {"compact": EMPTY, "spaced": optional(literal(" "))}


@dataclass(frozen=True)
class JsonSchema(Constraint):
    """The JSON texts of values that are valid by a schema, in one way of writing them.

    Properties stand in the order of the schema, strings as `json.dumps(..., ensure_ascii=False)`
    writes them; numbers have up to 15 digits before and after the point and, without limits, an
    exponent of up to two. With `whitespace="compact"` there is no space, with "spaced" there may
    be one after each comma and colon. Properties that the schema does not name are written only if
    `additionalProperties` is there and allows them; their keys may repeat.

    A `$ref` stands up to `depth` times inside itself, and a schema that allows every value has
    arrays and objects `depth` levels deep: `kind` is then "under". Each accepted text is valid
    JSON that the schema accepts. Raises ValueError that names the place in the schema for what is
    no schema, for keywords that are not supported, and for a oneOf whose branches may hold at once.
    outlines-core makes a regex of a schema too, but drops minimum, uniqueItems, and a minLength
    beside a pattern in silence, and writes a pattern without JSON's escapes.
    """

    schema: str  # as JSON, whatever it was given as
    depth: int
    whitespace: Whitespace
    _expression: Expression = field(repr=False, compare=False)
    _cut: bool = field(repr=False, compare=False)

    def __init__(
        self,
        schema: Mapping[str, Any] | bool | str,
        *,
        depth: int = 3,
        whitespace: Whitespace = "compact",
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1")
        if whitespace not in get_args(Whitespace):
            raise ValueError(f"whitespace={whitespace!r} must be one of {get_args(Whitespace)}")
        value = parse_json(schema, "the JSON schema") if isinstance(schema, str) else schema
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the JSON schema is no JSON value: {error}") from None
        # Read again, so that what was given can be changed later, and is JSON all through.
        reader = Reader(parse_json(text, "the JSON schema"), depth, _GAPS[whitespace])
        try:
            expression = reader.value(reader.root, "#")
        except RecursionError:
            raise ValueError("the JSON schema nests schemas too deeply") from None
        object.__setattr__(self, "schema", text)
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "whitespace", whitespace)
        object.__setattr__(self, "_expression", expression)
        object.__setattr__(self, "_cut", reader.cut)

    @property
    def source(self) -> str:
        return json.dumps([self.schema, self.depth, self.whitespace], ensure_ascii=False)

    @property
    def kind(self) -> Kind:
        return "under" if self._cut else "exact"

    @property
    def _title(self) -> str:
        return self.schema

    def build(self) -> ByteAutomaton:
        return automaton_of(self._expression)
