"""Constraints as plain data: back as they were, from files, and refused with a reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import dllm
from dllm.constraints import (
    Choice,
    Constraint,
    ConstraintSpan,
    Grammar,
    Hole,
    JsonSchema,
    Regex,
    Template,
    from_plain,
    to_plain,
)
from dllm.constraints.written import described, read_setting, title_of, write_setting
from tests.support.languages import Spelled, universal

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}
LIST = 'start: "(" start* ")"'
DIGITS = Regex("[0-9]+")

WRITTEN: list[tuple[Any, Any]] = [
    (DIGITS, {"regex": "[0-9]+"}),
    (Regex('"é\n\\d'), {"regex": '"é\n\\d'}),
    (Choice(["yes", "nö", ""]), {"choice": ["yes", "nö", ""]}),
    (JsonSchema(PERSON), {"json_schema": PERSON}),
    (JsonSchema(True, depth=1), {"json_schema": True, "depth": 1}),
    (
        JsonSchema({"enum": [1.5, "file", None, 10**20]}, whitespace="spaced"),
        {"json_schema": {"enum": [1.5, "file", None, 10**20]}, "whitespace": "spaced"},
    ),
    (Grammar(LIST), {"grammar": LIST}),
    (Grammar(LIST, method="emptiness"), {"grammar": LIST, "method": "emptiness"}),
    (
        Grammar('one: "a" one?', start="one", depth=2),
        {"grammar": 'one: "a" one?', "start": "one", "depth": 2},
    ),
    (Template("a", DIGITS, "b"), {"template": ["a", {"regex": "[0-9]+"}, "b"]}),
    (
        Template(Hole(), Hole(Template(Hole(DIGITS, 2)), 3)),
        {
            "template": [
                {"hole": None},
                {
                    "hole": {"template": [{"hole": {"regex": "[0-9]+"}, "tokens": 2}]},
                    "tokens": 3,
                },
            ]
        },
    ),
    (
        Template("a", Hole(tokens=(2, 4)), Hole(DIGITS, "auto")),
        {
            "template": [
                "a",
                {"hole": None, "tokens": [2, 4]},
                {"hole": {"regex": "[0-9]+"}, "tokens": "auto"},
            ]
        },
    ),
    (ConstraintSpan(DIGITS, 2, 5), {"span": {"regex": "[0-9]+"}, "start": 2, "stop": 5}),
]


@pytest.mark.parametrize(("constraint", "written"), WRITTEN)
def test_every_constraint_comes_back_as_it_was(constraint: Any, written: Any) -> None:
    assert to_plain(constraint) == written
    assert from_plain(written) == constraint
    for text in (json.dumps(written), yaml.safe_dump(written, sort_keys=False)):
        again: Any = from_plain(yaml.safe_load(text))
        assert again == constraint
        assert to_plain(again) == written
        assert getattr(again, "source", None) == getattr(constraint, "source", None)
    assert json.loads(described(constraint)) == written


def test_every_class_is_among_them() -> None:
    shown = {getattr(dllm.constraints, name) for name in dllm.constraints.__all__}
    bases = (Constraint, ConstraintSpan)
    kinds = {one for one in shown if isinstance(one, type) and issubclass(one, bases)}
    assert kinds - {Constraint} == {type(one) for one, _ in WRITTEN}


def test_a_setting_is_one_or_a_list_or_none() -> None:
    for value in (None, DIGITS, [DIGITS, None, Choice(["a"])]):
        assert read_setting(write_setting(value)) == value
        assert read_setting(value) == value
    assert read_setting([{"regex": "a"}, None]) == [Regex("a"), None]


def test_settings_read_it_as_plain_data_and_decode_alike() -> None:
    model, given = dllm.load("tiny"), {"constraint": {"regex": "[0-9]+-[0-9]=[0-9]{2}"}}
    settings = dllm.Settings.from_json({**given, "max_new_tokens": 8})
    assert settings == dllm.Settings(max_new_tokens=8, constraint=Regex("[0-9]+-[0-9]=[0-9]{2}"))
    read = dllm.Settings.from_json(settings.to_json())
    outputs = [dllm.generate(model, "sam has 9 cards.", one) for one in (settings, read)]
    outputs.append(dllm.generate(model, "sam has 9 cards.", max_new_tokens=8, **given))  # type: ignore[arg-type]
    assert len({tuple(map(tuple, out.sequences)) for out in outputs}) == 1


# Files.


def test_a_file_counts_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, text, made in [
        ("regex", "[0-9]+\n", DIGITS),
        ("choice", "yes\r\nno\n\n", Choice(["yes", "no"])),
        ("json_schema", "\ufeff" + json.dumps(PERSON, indent=2), JsonSchema(PERSON)),
        ("grammar", LIST, Grammar(LIST)),
    ]:
        for name in ("one.txt", "two.txt"):
            Path(name).write_text(text, encoding="utf-8", newline="")
        one, two = ({kind: {"file": name}} for name in ("one.txt", "two.txt"))
        assert from_plain(one) == from_plain(two) == made
        assert "file" not in described(from_plain(one))
        assert title_of(one) == f"{kind}:one.txt"
    Path("one.txt").write_text("[0-9]", encoding="utf-8")
    assert from_plain({"regex": {"file": "one.txt"}}) != DIGITS


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (None, "regex", "constraint: there is no file 'here.txt' in /"),
        (b"\xff\xfe\xff", "grammar", "here.txt is no text file in UTF-8"),
        (b'{"a": }', "json_schema", "constraint: here.txt is not valid JSON: .*line 1 column 7"),
        (b'{"type": "strin"}', "json_schema", "constraint: JSON schema: .*strin"),
        (b"(", "regex", r"constraint: regex '\(' is invalid at position 0"),
        (b"start: (", "grammar", "constraint: the grammar is invalid"),
        (b"\n", "choice", "constraint: Choice has no text"),
    ],
)
def test_a_file_that_is_none(
    content: bytes | None, kind: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("here.txt").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        from_plain({kind: {"file": "here.txt"}})


# What tells them apart.


def test_what_accepts_other_texts_is_described_otherwise() -> None:
    long = "a" * 200
    turned = {**PERSON, "properties": dict(reversed(list(PERSON["properties"].items())))}  # type: ignore[attr-defined]
    several: list[Any] = [
        *(one for one, _ in WRITTEN),
        *(Regex(long + end) for end in "xy"),
        JsonSchema(turned),  # an order of keys that is sorted away in a digest of mappings
        JsonSchema(PERSON, depth=2),
        Grammar(LIST, depth=5),
        [DIGITS],
        [None, DIGITS],
        None,
    ]
    assert len({described(one) for one in several}) == len(several)


def test_a_class_of_the_users_own_is_described_and_not_written() -> None:
    own = Spelled(universal(3))
    assert json.loads(described([own, None]))[0] == {
        "class": "tests.support.languages.Spelled",
        "source": "an automaton",
    }
    with pytest.raises(ValueError, match=r"^constraint=.* cannot be written: .* give it to the"):
        dllm.Settings(constraint=own).to_json()


# Wrong ones.


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "[0-9]+",
            r"constraint='\[0-9\]\+' must be a Constraint, or a mapping with one of regex, choice",
        ),
        (3, 'constraint=3 must be a Constraint, or a mapping with one of .*, such as {"regex":'),
        ({}, "has no kind: known: regex, choice"),
        ({"rejex": "a"}, "has no kind: did you mean 'regex'"),
        ({"regex": "a", "choice": ["b"]}, "constraint is both regex and choice: keep one"),
        ({"regex": "a", "depth": 3}, "unknown key 'depth' beside regex: regex is all it has"),
        ({"grammar": LIST, "dept": 3}, "unknown key 'dept' beside grammar: did you mean 'depth'"),
        ({"grammar": LIST, "depth": "3"}, "constraint: depth='3' must be a whole number"),
        ({"grammar": LIST, "depth": -1}, "constraint: depth=-1 must be at least 0"),
        ({"json_schema": {}, "whitespace": "wide"}, "whitespace='wide' must be 'compact' or 'sp"),
        ({"json_schema": '{"type": "string"}'}, "constraint.json_schema=.* must be a JSON schema"),
        ({"json_schema": {"type": 3}}, "constraint: JSON schema: "),
        ({"regex": 3}, 'constraint.regex=3 must be text, or {"file": NAME}'),
        ({"regex": "(a"}, "regex '\\(a' is invalid at position 0: missing \\)"),
        ({"regex": r"(a)\1"}, "a back reference"),
        ({"choice": [True, 3]}, "must be a list of texts: put numbers, yes and no into quotes"),
        ({"choice": "yes"}, "constraint.choice='yes' must be a list of texts"),
        ({"choice": []}, "Choice has no text to choose from"),
        ({"template": ["a"]}, "has no hole"),
        ({"template": "a"}, "must be a list of texts and holes"),
        ({"template": [{"regx": "a"}]}, r"constraint.template\[0\]={'regx': 'a'} has no kind: did"),
        ({"template": ["a", {"regex": "("}]}, r"^constraint.template\[1\]: regex '\('"),
        ({"template": [{"hole": None, "tokens": 0}]}, "tokens=0 of a hole must be at least 1"),
        ({"span": {"file": "x"}, "start": 0, "stop": 2}, "cannot be in a file"),
        ({"template": [{"hole": None, "tokens": "all"}]}, "must be a whole number, several, such"),
        ({"template": [{"hole": None, "tokens": []}]}, "names no length"),
        ({"template": [{"hole": None, "tokens": [2, 0]}]}, "must be at least 1"),
        ({"template": [{"hole": None, "tokens": 2.5}]}, "tokens=2.5 must be"),
        ({"span": {"regex": "a"}}, "constraint: span needs start, such as {"),
        (
            {"span": None, "start": 0, "stop": 1},
            "constraint.span=None must be a Constraint, or a mapping",
        ),
        ({"span": {"regex": "a"}, "start": 3, "stop": 3}, "start=3 and stop=3 must be slots"),
        ({"span": {"span": {"regex": "a"}}, "start": 0, "stop": 1}, "has no kind"),
    ],
)
def test_what_is_no_constraint(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dllm.Settings.from_json({"constraint": given})
    with pytest.raises(ValueError, match=r"constraint\[1\]"):
        dllm.Settings.from_json({"constraint": [None, given]})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lark.exceptions", None)
    with pytest.raises(ValueError, match=r"constraint: Grammar needs lark: pip install"):
        from_plain({"grammar": LIST})
