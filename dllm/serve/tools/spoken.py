"""What an answer says and which functions it calls, read off its text so far."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from dllm.serve.tools.language import MARK

_HEAD = re.compile(r'\n?\{"name": ?"([a-zA-Z0-9_-]+)", ?"arguments": ?(?=\{)')


@dataclass(frozen=True)
class Call:
    """A call of a function; its arguments are JSON, of a text that goes on perhaps a part of it."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Spoken:
    """An answer in the language of `ToolCalls`, or the beginning of one."""

    content: str = ""
    calls: tuple[Call, ...] = ()


def spoken(text: str, whole: bool) -> Spoken:
    """Returns what a text says; of one that is not whole, what stays whatever follows."""
    start = text.find(MARK)
    if start < 0:
        return Spoken(text if whole else text[: len(text) - _begun(text)])
    content, calls = text[:start], []
    while start >= 0:
        head = _HEAD.match(text, start + len(MARK))
        if head is None:
            break  # of which the name is not there yet
        end = _object_end(text, head.end())
        calls.append(Call(head[1], text[head.end() : end]))
        start = -1 if end is None else text.find(MARK, end)
    return Spoken(content, tuple(calls))


def _begun(text: str) -> int:
    """Returns how many characters at the end of a text may be the beginning of a mark."""
    return max(n for n in range(len(MARK)) if text.endswith(MARK[:n]))


def _object_end(text: str, start: int) -> int | None:
    """Returns where the JSON object that begins at `start` ends; None: not in this text."""
    depth, quoted, escaped = 0, False, False
    for place in range(start, len(text)):
        sign = text[place]
        if quoted:
            quoted = escaped or sign != '"'
            escaped = sign == "\\" and not escaped
        elif sign == '"':
            quoted = True
        elif sign in "{[":
            depth += 1
        elif sign in "]}":
            depth -= 1
            if not depth:
                return place + 1
    return None


@dataclass
class Telling:
    """What a stream has told of one answer."""

    text: str = ""
    told: Spoken = field(default_factory=Spoken)

    def more(self, text: str, whole: bool) -> dict[str, Any]:
        """Returns the delta that a longer text brings; empty: nothing is sure yet."""
        self.text = text
        now, before = spoken(text, whole), self.told
        delta: dict[str, Any] = {}
        if len(now.content) > len(before.content):
            delta["content"] = now.content[len(before.content) :]
        calls = []
        for index, call in enumerate(now.calls):
            if index >= len(before.calls):
                calls.append({"index": index, **plain(call)})
            elif more := call.arguments[len(before.calls[index].arguments) :]:
                calls.append({"index": index, "function": {"arguments": more}})
        if calls:
            delta["tool_calls"] = calls
        self.told = now
        return delta


def plain(call: Call) -> dict[str, Any]:
    """Returns a call in the shape of OpenAI's API, with an id of its own."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
