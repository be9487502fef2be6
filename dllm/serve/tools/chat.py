"""How a model is told of functions, of calls before and of what came of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from dllm.models.loading.tokenizer import render_chat
from dllm.serve.tools.language import END, MARK

# By the chat template itself; by a text of ours in the system message; not at all, where the
# template writes neither.
Way = Literal["template", "system", "nothing"]
Plain = dict[str, Any]  # a message as chat templates know it

_PROBE: Plain = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Probes.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@dataclass(frozen=True)
class ToolTemplate:
    """What a chat template does with functions."""

    way: Way
    marked: bool  # the model is told of calls between <tool_call> and </tool_call>

    def messages(self, chat: Sequence[Plain], tools: Sequence[Plain]) -> list[Plain]:
        """Returns a chat as the template can write it; with its own way, as it is.

        Calls and results become text as Hermes' templates write it, and functions a text in front.
        """
        if self.way == "template":
            return list(chat)
        found: list[Plain] = []
        for message in chat:
            plain = _as_text(message)
            if message["role"] == "tool" and found and found[-1].get("results"):
                found[-1]["content"] += "\n" + plain["content"]
            else:
                found.append({**plain, "results": message["role"] == "tool"})
        listed = [{"role": one["role"], "content": one["content"]} for one in found]
        return _introduced(listed, tools) if tools and self.way == "system" else listed


def tool_template(tokenizer: PreTrainedTokenizerBase) -> ToolTemplate:
    """Returns what a tokenizer's chat template does with functions, by trying it."""
    if not tokenizer.chat_template:
        return ToolTemplate("nothing", marked=False)  # encoding the chat says why there is none
    question: Plain = {"role": "user", "content": "question"}
    told = render_chat(tokenizer, [question], tools=[_PROBE])
    if told != render_chat(tokenizer, [question]):
        return ToolTemplate("template", marked=MARK in told)
    try:
        text = render_chat(tokenizer, [{"role": "system", "content": "introduction"}, question])
    except ValueError:
        return ToolTemplate("nothing", marked=False)  # some templates refuse system messages
    return (
        ToolTemplate("system", marked=True)
        if "introduction" in text
        else ToolTemplate("nothing", False)
    )


def _as_text(message: Plain) -> Plain:
    if message["role"] == "tool":
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": content}
    calls = [_written(one["function"]) for one in message.get("tool_calls", ())]
    parts = [message["content"]] if message["content"] else []
    return {"role": message["role"], "content": "\n".join([*parts, *calls])}


def _written(function: Mapping[str, Any]) -> str:
    shown = {"name": function["name"], "arguments": function["arguments"]}
    return f"{MARK}\n{json.dumps(shown, ensure_ascii=False)}\n{END}"


def _introduced(chat: list[Plain], tools: Sequence[Plain]) -> list[Plain]:
    """Returns a chat whose system message lists functions and says how they are called."""
    shown = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = (
        f"You can call these functions:\n{shown}\n"
        f'To call one, write {MARK}{{"name": ..., "arguments": {{...}}}}{END}.'
    )
    if chat[0]["role"] != "system":
        return [{"role": "system", "content": text}, *chat]
    first = {"role": "system", "content": f"{chat[0]['content']}\n\n{text}"}
    return [first, *chat[1:]]
