"""How models are told of functions, by what their chat templates write."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

import dllm
from dllm.serve.engine import Engine
from dllm.serve.service import Service
from dllm.serve.tools.chat import ToolTemplate, tool_template
from dllm.settings import Settings
from tests.support.calling import ADD, HERMES, LAST, NOW, OTHER_MARK, STRICT, WITHOUT, calling_model
from tests.support.serving import LONG, listening

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "add", "arguments": {"a": 1, "b": "ä"}},
}
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "add"},
    {"role": "assistant", "content": "yes", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
    {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
    {"role": "user", "content": "thanks"},
]


@pytest.mark.parametrize(
    ("template", "way", "marked"),
    [
        (HERMES, "template", True),
        (OTHER_MARK, "template", False),
        (WITHOUT, "system", True),
        (LAST, "nothing", False),
        (STRICT, "nothing", False),
    ],
)
def test_ways(template: str, way: Any, marked: bool) -> None:
    tokenizer: Any = calling_model(template).tokenizer
    assert tool_template(tokenizer) == ToolTemplate(way, marked)


def test_a_template_of_its_own_is_left_alone() -> None:
    assert ToolTemplate("template", marked=True).messages(CHAT, [ADD]) == CHAT


def test_calls_and_results_as_text() -> None:
    made = ToolTemplate("system", marked=True).messages(CHAT, [ADD, NOW])
    assert [one["role"] for one in made] == ["system", "user", "assistant", "user", "user"]
    assert '{"name": "add", "description": "Adds two numbers."' in made[0]["content"]
    assert '\n{"name": "now"}\n' in made[0]["content"]
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "ä"}}\n</tool_call>'
    assert made[2]["content"] == f"yes\n{call}\n{call}"
    results = ["<tool_response>\n2\n</tool_response>", "<tool_response>\n3\n</tool_response>"]
    assert made[3]["content"] == "\n".join(results)
    assert all(set(one) == {"role", "content"} for one in made)
    assert ToolTemplate("nothing", marked=False).messages(CHAT, [ADD]) == made[1:]


def test_an_introduction_is_kept() -> None:
    chat = [{"role": "system", "content": "Be kind."}, *CHAT[:1]]
    first, _ = ToolTemplate("system", marked=True).messages(chat, [NOW])
    assert first["content"].startswith("Be kind.\n\nYou can call")


@pytest.mark.parametrize(
    ("template", "said"), [(OTHER_MARK, "does not write"), (LAST, "tells it of no functions")]
)
def test_what_is_left_to_a_model_must_be_told(template: str, said: str) -> None:
    model = calling_model(template)
    base = Settings(cache="block_causal", max_new_tokens=64)
    asked = {"model": "m", "messages": CHAT[:1], "tools": [ADD]}
    with listening(Service(model, "m", Engine(model), base)) as at:
        made = httpx.post(f"{at}/v1/chat/completions", json=asked, timeout=LONG)
        assert made.status_code == 400
        assert made.json()["error"]["param"] == "tool_choice"
        assert said in made.json()["error"]["message"]
        made = httpx.post(
            f"{at}/v1/chat/completions", json={**asked, "tool_choice": "required"}, timeout=LONG
        )
        assert made.json()["choices"][0]["message"]["tool_calls"]


def test_a_tokenizer_that_cannot_spell_calls(tiny: dllm.HostedModel) -> None:
    asked = {"model": "m", "messages": CHAT[:1], "tools": [ADD], "tool_choice": "required"}
    with listening(Service(tiny, "m", Engine(tiny))) as at:
        made = httpx.post(f"{at}/v1/chat/completions", json=asked, timeout=LONG)
    assert made.status_code == 400
    assert made.json()["error"]["param"] == "tools"
    assert "tokens can spell" in made.json()["error"]["message"]
