"""What an answer calls, read off its text as it grows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dllm.constraints import JsonSchema
from dllm.serve.tools.language import Callable, ToolCalls
from dllm.serve.tools.spoken import Call, Spoken, Telling, spoken
from tests.support.vocabularies import byte_level

TWO = (
    'Well:\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}]\\"\\\\"}]}}\n'
    '</tool_call>\n<tool_call>{"name":"say","arguments":{"text":"</tool_call><tool_call>{"}}'
    "</tool_call>"
)
READ = Spoken(
    "Well:\n",
    (
        Call("add", '{"a": 1, "b": [2, {"c": "}]\\"\\\\"}]}'),
        Call("say", '{"text":"</tool_call><tool_call>{"}'),
    ),
)


def test_text_and_calls() -> None:
    assert spoken(TWO, whole=True) == READ
    assert json.loads(READ.calls[0].arguments) == {"a": 1, "b": [2, {"c": '}]"\\'}]}
    assert spoken("no call < at all", whole=True) == Spoken("no call < at all")


def test_what_was_told_is_never_taken_back() -> None:
    telling, content = Telling(), ""
    calls: dict[int, dict[str, Any]] = {}
    for length in range(len(TWO) + 1):
        delta = telling.more(TWO[:length], whole=length == len(TWO))
        content += delta.get("content", "")
        assert READ.content.startswith(content)
        for part in delta.get("tool_calls", ()):
            if part["index"] not in calls:
                assert part["id"].startswith("call_")
                calls[part["index"]] = dict(part["function"])
            else:
                assert set(part) == {"index", "function"}
                calls[part["index"]]["arguments"] += part["function"]["arguments"]
    assert content == READ.content
    assert [Call(**calls[n]) for n in sorted(calls)] == list(READ.calls)


def test_the_beginning_of_a_mark_is_held_back_and_told_at_the_end() -> None:
    telling = Telling()
    assert telling.more("a <tool", whole=False) == {"content": "a "}
    assert telling.more("a <tool", whole=True) == {"content": "<tool"}


SAY = Callable("say", JsonSchema({"type": "object", "properties": {"text": {"type": "string"}}}))
NOW = Callable("now", JsonSchema({"type": "object"}))
A, B = (
    '<tool_call>{"name":"now","arguments":{}}</tool_call>',
    '<tool_call>\n{"name": "say", "arguments": {"text":"</tool_call>"}}\n</tool_call>',
)


@pytest.mark.parametrize(
    ("text", "one", "several", "auto"),
    [
        (A, True, True, True),
        (B, True, True, True),
        (A + B, False, True, True),
        (f"{B}\n{A}", False, True, True),
        ("", False, False, True),
        ("plain text <tool_cal", False, False, True),
        (f"text {A}", False, False, True),
        (f"{A} text", False, False, False),
        ("<tool_call>", False, False, False),
        (A.replace("now", "later"), False, False, False),
        (A.replace("{}", "[]"), False, False, False),
        (A.replace("now", "say").replace("{}", '{"text":1}'), False, False, False),
    ],
)
def test_the_language(text: str, one: bool, several: bool, auto: bool) -> None:
    def accepts(many: bool, with_text: bool) -> bool:
        made = ToolCalls((SAY, NOW), several=many, text=with_text)
        return made.byte_automaton().accepts(text.encode())

    assert accepts(False, False) == one
    assert accepts(True, False) == several
    assert accepts(True, True) == auto


def test_languages_with_other_functions_have_other_names() -> None:
    tokenizer = byte_level(())
    one, other = (ToolCalls((f,), several=False, text=False) for f in (SAY, NOW))
    assert one.source != other.source
    assert one.at(tokenizer) is one.at(tokenizer)
    assert one.at(tokenizer) is not other.at(tokenizer)
    assert one.kind == "exact"
    anything = Callable("any", JsonSchema({"type": "object", "additionalProperties": True}))
    assert ToolCalls((NOW, anything), several=False, text=False).kind == "under"
