"""The answers that call functions: which texts they are."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dllm.constraints.automaton import ByteAutomaton
from dllm.constraints.base import Constraint, Kind
from dllm.constraints.json_schema import JsonSchema
from dllm.constraints.regular.determinise import automaton_of
from dllm.constraints.regular.expression import (
    ANY,
    Expression,
    Known,
    Repeated,
    Sequence,
    Without,
    joined,
    listed,
    literal,
    one_of,
    optional,
)

# As Hermes' and Qwen's chat templates have it, which most models with functions were trained on.
MARK, END = "<tool_call>", "</tool_call>"
_SPACE, _LINE = optional(literal(" ")), optional(literal("\n"))


@dataclass(frozen=True)
class Callable:
    """A function by name, and the objects that it takes."""

    name: str
    arguments: JsonSchema


@dataclass(frozen=True)
class ToolCalls(Constraint):
    """Answers that call functions, with arguments that their schemas accept.

    A call is `<tool_call>{"name": "...", "arguments": {...}}</tool_call>`, with or without the
    spaces and a line end inside the marks. With `text` an answer may be text, or begin with it:
    any in which `<tool_call>` does not stand, so that what stands behind one is a call for sure.
    """

    functions: tuple[Callable, ...]
    several: bool  # calls, one behind the other
    text: bool

    @property
    def source(self) -> str:
        listed_ = [[one.name, one.arguments.source] for one in self.functions]
        return json.dumps([listed_, self.several, self.text])

    @property
    def kind(self) -> Kind:
        return "under" if any(one.arguments.kind == "under" for one in self.functions) else "exact"

    @property
    def _title(self) -> str:
        return ", ".join(one.name for one in self.functions)

    def build(self) -> ByteAutomaton:
        call = one_of(*map(_call, self.functions))
        calls = listed(call, _LINE) if self.several else call
        return automaton_of(joined(_TEXT, optional(calls)) if self.text else calls)


_TEXT: Expression = Without(Repeated(ANY), Sequence((Repeated(ANY), literal(MARK), Repeated(ANY))))


def _call(function: Callable) -> Expression:
    return joined(
        literal(MARK),
        _LINE,
        literal('{"name":'),
        _SPACE,
        literal(f'"{function.name}",'),
        _SPACE,
        literal('"arguments":'),
        _SPACE,
        Known(function.arguments.byte_automaton()),
        literal("}"),
        _LINE,
        literal(END),
    )
