"""JSON schemas against `jsonschema`: what is accepted is valid, and what is valid is accepted."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest

from dllm.constraints import JsonSchema
from tests.support.marks import some
from tests.support.schemas import near_value, random_schema, random_text


def validator(schema: Any) -> Any:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def language(schema: Any) -> JsonSchema | None:
    """Returns the language of a random schema, None of one that accepts nothing."""
    found = JsonSchema(schema)
    try:
        found.byte_automaton()
    except ValueError as error:
        assert "accepts no text" in str(error)  # noqa: PT017 - others are as good
        return None
    return found


@pytest.mark.parametrize("seed", some(range(20), every=10))
def test_accepted_texts_parse_and_are_valid(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(10):
        schema = random_schema(source, 3)
        found = language(schema)
        if found is None:
            continue
        automaton, checks = found.byte_automaton(), validator(schema)
        for length in (0, 5, 20, 60, 200):
            text = random_text(automaton, source, length)
            assert automaton.accepts(text)
            checks.validate(json.loads(text))


@pytest.mark.parametrize("seed", some(range(20), every=10))
def test_values_are_accepted_if_and_only_if_they_are_valid(seed: int) -> None:
    source = random.Random(100 + seed)
    seen = []
    for _ in range(10):
        schema = random_schema(source, 2)
        found = language(schema)
        checks = validator(schema)
        for _ in range(60):
            value = near_value(schema, source)
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            valid = checks.is_valid(value)
            if valid and ("format" in str(schema) or not same_form(value, schema)):
                continue  # of those only a part is written
            accepted = found is not None and found.byte_automaton().accepts(text.encode())
            assert accepted == valid, (schema, text)
            seen.append(valid)
    assert set(seen) == {False, True}


def same_form(value: Any, schema: Any) -> bool:
    """Whether a valid value is one that is written: whole numbers for integers, known keys."""
    text = json.dumps(value)
    return not re.search(r"\d\.0\b", text) and "-0" not in text


def accepted(schema: Any, *texts: str, **options: Any) -> list[bool]:
    automaton = JsonSchema(schema, **options).byte_automaton()
    return [automaton.accepts(text.encode()) for text in texts]


def test_the_order_of_properties_and_what_may_be_missing() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}},
        "required": ["b"],
    }
    good = ['{"b":null}', '{"a":null,"b":null}', '{"b":null,"c":null}']
    bad = ["{}", '{"a":null}', '{"b":null,"a":null}', '{"b":null,}', '{,"b":null}', '{"b": null}']
    assert accepted(schema, *good) == [True] * 3
    assert accepted(schema, *bad) == [False] * 6
    assert accepted(schema, '{"a": null, "b":null}', '{"b":  null}', whitespace="spaced") == [
        True,
        False,
    ]


def test_other_properties_have_other_keys() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "additionalProperties": {"type": "integer"},
    }
    good = ["{}", '{"b":1}', '{"a":null,"b":1,"aa":2}', '{"":3}', '{"b":1,"b":2}']
    bad = ['{"a":1}', '{"b":null}', '{"b":1,"a":null}', '{"a":null,"a":1}']
    assert accepted(schema, *good) == [True] * 5
    assert accepted(schema, *bad) == [False] * 4
    kept = {"type": "object", "required": ["x"], "additionalProperties": {"type": "null"}}
    assert accepted(kept, '{"x":null}', '{"x":null,"y":null}', "{}") == [True, True, False]


@pytest.mark.parametrize("seed", some(range(3), every=3))
def test_limits_of_numbers_to_the_last_digit(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(12):
        digits = source.randrange(3)
        low = round(source.uniform(-60, 60), digits)
        schema: dict[str, Any] = {"type": "number", "minimum": low}
        schema["exclusiveMaximum" if source.random() < 0.5 else "maximum"] = round(
            low + source.uniform(0.1, 70), digits
        )
        automaton, checks = JsonSchema(schema).byte_automaton(), validator(schema)
        for hundredths in range(-9000, 16000, 7 if digits else 3):
            text = f"{hundredths / 100:.2f}"
            if text.startswith("-0.00"):
                continue
            assert automaton.accepts(text.encode()) == checks.is_valid(float(text)), (schema, text)


def test_integers_to_the_last_one() -> None:
    source = random.Random(0)
    for _ in range(25):
        low, high = sorted(source.sample(range(-1200, 1200), 2))
        schema = {"type": "integer", "minimum": low, "maximum": high, "multipleOf": 3}
        automaton = JsonSchema(schema).byte_automaton()
        for value in range(-1300, 1300):
            expected = low <= value <= high and value % 3 == 0
            assert automaton.accepts(str(value).encode()) == expected
        for text in ("007", "+5", "-0", "1.0", "1e1", ""):
            assert not automaton.accepts(text.encode())


def test_limits_beyond_what_is_written_without_them() -> None:
    assert accepted({"type": "integer", "minimum": 10**20}, str(10**20), "5") == [True, False]
    assert accepted({"type": "integer", "exclusiveMinimum": 1.5, "maximum": 2}, "2", "1") == [
        True,
        False,
    ]
    assert accepted({"type": "number", "maximum": -1e-3}, "-0.001", "0", "-0.0009", "-7") == [
        *(True, False, False, True)
    ]


def test_strings_have_one_spelling() -> None:
    good = ['"a\\n\\"\\\\\\u0001/\u00e9\U0001f600\x7f"', '""']
    bad = ['"\\u00e9"', '"\\/"', '"\n"', '"\\u000A"', "'a'", '"a']
    assert accepted({"type": "string"}, *good) == [True, True]
    assert accepted({"type": "string"}, *bad) == [False] * 6


def test_a_pattern_is_of_the_string_and_not_of_its_spelling() -> None:
    assert accepted({"type": "string", "pattern": '^"\\n?$'}, '"\\""', '"\\"\\n"', '"a"') == [
        *(True, True, False)
    ]
    twice = {"type": "string", "pattern": "^\\\\+$", "minLength": 2, "maxLength": 2}
    assert accepted(twice, '"\\\\\\\\"', '"\\\\"') == [True, False]
    no_quote = {"type": "string", "pattern": '^(?!.*").{2}$'}
    assert accepted(no_quote, '"a\\\\"', '"a\\""', '"\\"a"') == [True, False, False]
    # Only what ECMAScript and Python both take for a digit.
    assert accepted({"type": "string", "pattern": r"^\d$"}, '"5"', '"\u0665"') == [True, False]


TREE = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            },
            "required": ["v", "kids"],
        }
    },
}


def nested(depth: int) -> str:
    text = '{"v":1,"kids":[]}'
    for _ in range(depth):
        text = '{"v":1,"kids":[' + text + "," + text + "]}"
    return text


@pytest.mark.parametrize("depth", [1, 2])
def test_a_schema_inside_itself_is_cut(depth: int) -> None:
    found = JsonSchema(TREE, depth=depth)
    assert found.kind == "under"
    automaton = found.byte_automaton()
    assert automaton.accepts(nested(depth).encode())
    assert not automaton.accepts(nested(depth + 1).encode())
    assert JsonSchema({"type": "null"}).kind == "exact"


def test_a_schema_of_everything() -> None:
    for schema in ({}, True, {"title": "anything"}, {"type": "array"}):
        found = JsonSchema(schema, depth=2)
        assert found.kind == "under"
        automaton = found.byte_automaton()
        assert automaton.accepts(b'[1,{"a":[]},"x"]') == (schema == {"type": "array"})
        assert automaton.accepts(b'[1,{"a":2},-1.5e3]')
        source = random.Random(0)
        for _ in range(30):
            json.loads(random_text(automaton, source, 40))


def test_branches_of_one_of() -> None:
    schema = {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 5}]}
    assert accepted(schema, "3", "4", "5") == [True, False, True]
    kinds = [{"type": "object", "properties": {"k": {"const": n}}, "required": ["k"]} for n in "ab"]
    assert accepted({"oneOf": kinds}, '{"k":"a"}', '{"k":"b"}', '{"k":"c"}') == [True, True, False]


@pytest.mark.parametrize(
    "branches",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{"type": "string"}, {"const": "a"}],
        [{"enum": [1, "a"]}, {"enum": ["b", 1.0]}],
        [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 3}],
        [{"type": "object", "properties": {"k": {"const": n}}} for n in "ab"],  # not required
        [{"minimum": 3}, {"type": "string"}],  # without a type, any string is valid
        [True, {"type": "null"}],
    ],
)
def test_branches_that_may_both_hold_are_refused(branches: list[Any]) -> None:
    with pytest.raises(ValueError, match="#/oneOf is not supported here: branches 0 and 1 may"):
        JsonSchema({"oneOf": branches})


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (
            {"type": "object", "minProperties": 1},
            "#/minProperties is not supported; known keywords",
        ),
        ({"items": {"uniqueItems": True}}, "#/items/uniqueItems is not supported"),
        ({"properties": {"a": {"not": {}}}}, "#/properties/a/not is not supported"),
        ({"type": "text"}, "#/type is 'text', and must be one of null, boolean"),
        ({"type": "string", "minLength": -1}, "#/minLength is -1, and must be an integer of"),
        ({"type": "string", "format": "iri"}, "#/format is 'iri', and must be one of date"),
        ({"type": "string", "pattern": "a("}, "#/pattern is not supported: regex 'a(' is invalid"),
        ({"type": "string", "pattern": r"\bx"}, "a word boundary"),
        ({"type": "number", "multipleOf": 2}, '#/multipleOf is supported beside "type": "integer"'),
        ({"type": "integer", "multipleOf": 0.5}, "supported for integers up to 1000"),
        ({"items": [{}]}, "#/items is [{}], and must be a schema; a list of them is prefixItems"),
        ({"$ref": "http://x"}, "#/$ref is 'http://x': references are inside the schema"),
        ({"$ref": "#/$defs/x"}, "#/$ref is '#/$defs/x', which is nowhere"),
        ({"$ref": "#", "type": "null"}, "#/type is not supported beside $ref"),
        ({"anyOf": [{}], "minimum": 3}, "#/minimum is not supported beside anyOf"),
        ({"allOf": [{}, {}]}, "#/allOf is supported with one schema only"),
        ({"enum": []}, "#/enum is [], and must be a list of values"),
        ({"type": "string", "enum": [1]}, "#/enum has no value of type string"),
        ({"properties": {"a": 3}}, "#/properties is {'a': 3}, and must be an object of schemas"),
        ({"const": "\ud800"}, "#/const is not supported"),
        ({"minimum": 10**400}, "and must be a number of at most 30 digits"),
        ({"type": "array", "maxItems": 10**9}, "# has more than 10000 items"),
        (3, "# is 3, and a schema is an object, true or false"),
        ("{", "the JSON schema is not valid JSON"),
        ({"a": {1}}, "the JSON schema is no JSON value"),
        ({"const": float("nan")}, "the JSON schema is no JSON value"),
    ],
)
def test_schemas_that_are_refused(schema: Any, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        JsonSchema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "object", "required": ["x"], "additionalProperties": False},
        {"type": "string", "pattern": "^a$", "minLength": 2},
        {"$ref": "#"},
    ],
)
def test_schemas_that_accept_nothing(schema: Any) -> None:
    with pytest.raises(ValueError, match="accepts no text at all"):
        JsonSchema(schema).byte_automaton()


@pytest.mark.slow
def test_schemas_that_grow_are_refused() -> None:
    with pytest.raises(ValueError, match="is too large"):
        JsonSchema({"type": "string", "maxLength": 10**6}).byte_automaton()
    inner: Any = {"type": "integer"}
    for _ in range(5):
        inner = {"type": "array", "items": inner, "minItems": 50, "maxItems": 100}
    with pytest.raises(ValueError, match="is too large"):
        JsonSchema(inner).byte_automaton()


def test_a_schema_twice_inside_itself_is_read_once_at_each_depth() -> None:
    two = {name: {"anyOf": [{"$ref": "#"}, {"type": "null"}]} for name in ("left", "right")}
    schema = {"type": "object", "properties": two}
    assert accepted(schema, '{"left":{"right":{"left":null}}}', depth=2) == [True]
    with pytest.raises(ValueError, match="is too large"):
        JsonSchema(schema, depth=40).byte_automaton()


def test_options_and_sources() -> None:
    with pytest.raises(ValueError, match="depth=0 must be at least 1"):
        JsonSchema({}, depth=0)
    with pytest.raises(ValueError, match="whitespace='any' must be one of"):
        JsonSchema({}, whitespace="any")  # type: ignore[arg-type]
    one, other = JsonSchema({"type": "null"}), JsonSchema('{"type": "null"}')
    assert one == other
    assert hash(one) == hash(other)
    many = [one, *(JsonSchema({}, depth=n) for n in (1, 2)), JsonSchema({}, whitespace="spaced")]
    assert len({found.source for found in many}) == 4
