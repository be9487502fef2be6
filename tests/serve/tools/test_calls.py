"""Calls of functions as OpenAI's own client asks for them and reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import jsonschema
import openai
import pytest

import dllm
from dllm.serve.engine import Engine
from dllm.serve.service import Service
from dllm.settings import Settings
from tests.support.calling import ADD, NOW, SAY, calling_model, tool
from tests.support.serving import LONG, listening

BASE = Settings(scheduler="threshold:0.2", cache="block_causal", max_new_tokens=160)
ASKED: list[Any] = [{"role": "user", "content": "What is 12 + 34?"}]
TOOLS: list[Any] = [ADD, SAY, NOW]
SCHEMAS = {one["function"]["name"]: one["function"].get("parameters", {}) for one in TOOLS}


@pytest.fixture(scope="module")
def model() -> dllm.HostedModel:
    return calling_model()


@pytest.fixture(scope="module")
def address(model: dllm.HostedModel) -> Iterator[str]:
    with listening(Service(model, "m", Engine(model, max_rows=4), BASE)) as at:
        yield at


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=LONG, max_retries=0)


def checked(calls: Sequence[Any] | None) -> list[tuple[str, Any]]:
    """Returns calls by name with their arguments, which their schemas accept."""
    assert calls
    assert len({call.id for call in calls}) == len(calls)
    found = []
    for call in calls:
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, SCHEMAS[call.function.name])
        found.append((call.function.name, arguments))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_call_is_required(client: openai.OpenAI, seed: int) -> None:
    asked: dict[str, Any] = {"messages": ASKED, "tools": TOOLS, "tool_choice": "required"}
    asked |= {"temperature": 1.0, "seed": seed, "model": "m"}
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    made = checked(choice.message.tool_calls)
    with client.chat.completions.stream(**asked) as stream:
        (same,) = stream.get_final_completion().choices
    assert same.finish_reason == "tool_calls"
    assert checked(same.message.tool_calls) == made, "streamed"
    one = client.chat.completions.create(parallel_tool_calls=False, **asked).choices[0]
    assert len(checked(one.message.tool_calls)) == 1


@pytest.mark.parametrize("name", ["add", "say-it", "now"])
def test_a_function_is_named(client: openai.OpenAI, name: str) -> None:
    choice: Any = {"type": "function", "function": {"name": name}}
    asked: dict[str, Any] = {"messages": ASKED, "tools": TOOLS, "tool_choice": choice, "n": 2}
    made = client.chat.completions.create(model="m", temperature=0.8, seed=1, **asked)
    for one in made.choices:
        ((called, _),) = checked(one.message.tool_calls)
        assert called == name
        assert one.finish_reason == "tool_calls"


def test_a_call_is_streamed_piece_by_piece(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"messages": ASKED, "tools": TOOLS, "tool_choice": "required"}
    parts = list(client.chat.completions.create(model="m", stream=True, **asked))
    deltas = [part.choices[0].delta for part in parts]
    assert deltas[0].role == "assistant"
    assert not any(delta.content for delta in deltas)
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert len(calls) > 2, "in one piece, which is no stream"
    first = [call for call in calls if call.id]
    assert [call.index for call in first] == list(range(len(first)))
    assert all(call.function and call.function.name for call in first)
    assert parts[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", range(6))
def test_text_or_calls(client: openai.OpenAI, seed: int) -> None:
    asked: dict[str, Any] = {"messages": ASKED, "tools": TOOLS, "temperature": 1.0, "seed": seed}
    (choice,) = client.chat.completions.create(model="m", **asked).choices
    calls = choice.message.tool_calls
    if calls:
        checked(calls)
    assert (choice.finish_reason == "tool_calls") == bool(calls)
    assert "<tool_call>" not in (choice.message.content or "")
    text, called = "", 0
    for part in client.chat.completions.create(model="m", stream=True, **asked):
        text += part.choices[0].delta.content or ""
        called += sum(bool(call.id) for call in part.choices[0].delta.tool_calls or ())
    assert text == (choice.message.content or "")
    assert called == len(calls or ())


def test_results_go_back(client: openai.OpenAI, model: dllm.HostedModel) -> None:
    asked: dict[str, Any] = {"model": "m", "tools": TOOLS}
    first = client.chat.completions.create(messages=ASKED, tool_choice="required", **asked)
    message: Any = first.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"result {n}"}
        for n, call in enumerate(message.tool_calls)
    ]
    chat = [*ASKED, message, *results]
    made = client.chat.completions.create(messages=chat, tool_choice="none", **asked)
    assert made.choices[0].finish_reason in ("stop", "length")
    assert made.choices[0].message.tool_calls is None
    tokenizer: Any = model.tokenizer
    calls = [
        {"function": {"name": call.function.name, "arguments": json.loads(call.function.arguments)}}
        for call in message.tool_calls
    ]
    said = {"role": "assistant", "content": "", "tool_calls": calls}
    text = tokenizer.apply_chat_template([*ASKED, said, *results], tools=TOOLS, tokenize=False)
    assert "result 0" in text
    alone = dllm.generate(model, [tokenizer.encode(text, add_special_tokens=False)], BASE, seed=0)
    assert alone.texts is not None
    assert made.choices[0].message.content == alone.texts[0]


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


def parameters(**schema: Any) -> dict[str, Any]:
    return function(parameters={"type": "object", "properties": {"x": schema}, "required": ["x"]})


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
# Fields beside the messages, the field that is wrong, and what the message says.
WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({"tools": []}, "tools", "at least 1"),
    ({"tools": [tool(f"f{n}") for n in range(129)]}, "tools", "at most 128"),
    ({"tools": [ADD, ADD]}, "tools.1.function.name", "two tools are called 'add'"),
    ({"tools": [tool("a b")]}, "tools.0.function.name", "pattern"),
    ({"tools": [tool("a\n")]}, "tools.0.function.name", "pattern"),
    ({"tools": [tool("")]}, "tools.0.function.name", "pattern"),
    ({"tools": [tool("x" * 65)]}, "tools.0.function.name", "pattern"),
    ({"tools": [{"type": "code"}]}, "tools.0.type", "function"),
    ({"tools": [{"type": "function"}]}, "tools.0.function", "required"),
    ({"tools": [function(extra=1)]}, "tools.0.function.extra", "no such field"),
    ({"tools": [function(strict="yes")]}, "tools.0.function.strict", "boolean"),
    ({"tools": [function(parameters=[])]}, "tools.0.function.parameters", "dictionary"),
    ({"tools": [function(parameters={})]}, "tools.0.function.parameters", "are an object"),
    ({"tools": [function(parameters={"type": "array"})]}, "tools.0.function.parameters", "'array'"),
    ({"tools": [parameters(type="odd")]}, "tools.0.function.parameters", "'f': JSON schema"),
    ({"tools": [NOW, parameters(uniqueItems=True)]}, "tools.1.function.parameters", "uniqueItems"),
    ({"tools": [parameters(enum=[])]}, "tools.0.function.parameters", "enum"),
    (
        {"tools": [parameters(type="integer", minimum=3, maximum=2)]},
        "tools.0.function.parameters",
        "tool 'f': JsonSchema",
    ),
    ({"tools": [parameters(**{"$ref": "#/nowhere"})]}, "tools.0.function.parameters", "nowhere"),
    ({"tools": [parameters(type="string", maxLength=10**9)]}, "tools.0.function.parameters", "'f'"),
    ({"tools": [ADD], "tool_choice": "sometimes"}, "tool_choice", "required"),
    (
        {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
        "tool_choice",
        "'sub', and tools are add",
    ),
    ({"tool_choice": "auto"}, "tool_choice", "there are none"),
    ({"parallel_tool_calls": True}, "parallel_tool_calls", "there are none"),
    ({"tools": [ADD], "response_format": {"type": "json_object"}}, "response_format", "leave one"),
    ({"tools": [ADD], "dllm": {"constraint": {"regex": "a"}}}, "tools", "leave one"),
    ({"tools": [ADD], "tool_choice": "required", "max_tokens": 3}, "max_tokens", "at least"),
    ({"tools": [ADD], "stop": "x"}, None, "stop"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "required"),
    (
        {"messages": [*ASKED, {"role": "tool", "content": "x", "tool_call_id": "c1"}]},
        "messages.1.tool_call_id",
        "no message before",
    ),
    ({"messages": [{"role": "assistant"}]}, "messages.0.content", "tool_calls or both"),
    (
        {"messages": [{"role": "assistant", "tool_calls": []}]},
        "messages.0.tool_calls",
        "at least 1",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{**CALL, "function": {"name": "add", "arguments": "[1"}}],
                }
            ]
        },
        "messages.0.tool_calls.0.function.arguments",
        "arguments",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{**CALL, "function": {"name": "add", "arguments": "[1]"}}],
                }
            ]
        },
        "messages.0.tool_calls.0.function.arguments",
        "give a JSON object",
    ),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
        "messages.0.tool_calls",
        "no such field",
    ),
]


@pytest.mark.parametrize(
    ("fields", "field", "said"), WRONG, ids=[str(number) for number in range(len(WRONG))]
)
def test_wrong_requests(address: str, fields: dict[str, Any], field: str | None, said: str) -> None:
    body = {"model": "m", "messages": ASKED, **fields}
    made = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=LONG)
    error = made.json()["error"]
    assert made.status_code == 400, error
    assert error["param"] == field
    assert said in error["message"]
