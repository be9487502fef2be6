"""A random model that can spell calls of functions, with chat templates of several kinds."""

from __future__ import annotations

from functools import cache
from typing import Any

import dllm
from tests.support.models import speaking_model
from tests.support.vocabularies import byte_level

_WORDS = (b"<tool_call>", b"</tool_call>", b'{"name":', b'"arguments":', b" the", b"\n", b'"}')

# Writes functions, calls and results, as Hermes' does.
HERMES = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>"
    "<tool_call></tool_call>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}<assistant>"
)
OTHER_MARK = HERMES.replace("<tool_call>", "[CALL]").replace("</tool_call>", "[/CALL]")
WITHOUT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
LAST = "{{ messages[-1]['content'] }}"
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)


@cache
def calling_model(template: str = HERMES) -> dllm.HostedModel:
    """Returns a random block-causal model whose tokenizer spells anything, with a template."""
    tokenizer = byte_level(_WORDS)
    tokenizer.chat_template = template
    return speaking_model("sdar", tokenizer)


def tool(name: str, description: str | None = None, **properties: Any) -> dict[str, Any]:
    """Returns a tool all of whose properties must be given."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    described = {} if description is None else {"description": description}
    return {"type": "function", "function": {"name": name, **described, "parameters": schema}}


ADD = tool("add", "Adds two numbers.", a={"type": "integer"}, b={"type": "integer"})
SAY = tool("say-it", text={"type": "string", "maxLength": 12}, mood={"enum": ["calm", "glad"]})
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
