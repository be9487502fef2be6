"""The functions that a request offers: what its answers may call, and the chat that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dllm.constraints import JsonSchema
from dllm.models.loading.tokenizer import encode_chat
from dllm.models.model import DenoisingModel
from dllm.reading import parse_json
from dllm.serve.asked import FieldError
from dllm.serve.fields import AssistantMessage, ChatRequest, ToolMessage, UserMessage
from dllm.serve.tools.chat import Plain, ToolTemplate
from dllm.serve.tools.fields import Called, ChosenTool, Tool
from dllm.serve.tools.language import MARK, Callable, ToolCalls


def calls_of(asked: ChatRequest, template: ToolTemplate) -> ToolCalls | None:
    """Returns the language of answers that may call functions; None: none may.

    Raises FieldError for functions that cannot be offered, or not in this way.
    """
    if asked.tools is None:
        for name in ("tool_choice", "parallel_tool_calls"):
            if getattr(asked, name) is not None:
                raise FieldError(name, f"{name} goes with tools, and there are none: leave it out")
        return None
    _check_names(asked.tools)
    choice = asked.tool_choice or "auto"
    functions = [_callable(tool, f"tools.{n}.function") for n, tool in enumerate(asked.tools)]
    if choice == "none":
        return None
    if asked.response_format is not None and asked.response_format.type != "text":
        raise FieldError(
            "response_format",
            "response_format says what a text is, and with tools an answer may be calls: leave one "
            'out, or set tool_choice="none"',
        )
    if isinstance(choice, ChosenTool):
        return ToolCalls((_chosen(choice, functions),), several=False, text=False)
    if choice == "auto" and not template.marked:
        raise FieldError("tool_choice", _NO_MARK[template.way])
    several = asked.parallel_tool_calls is not False
    return ToolCalls(tuple(functions), several, text=choice == "auto")


_NO_MARK = {
    "template": f'tool_choice="auto" tells text from calls by {MARK}, which this model\'s chat '
    'template does not write: set "required", a function or "none"',
    "nothing": 'tool_choice="auto" leaves it to the model whether to call, and this model\'s chat '
    'template tells it of no functions: set "required", a function or "none"',
}


def chat_of(
    model: DenoisingModel, asked: ChatRequest, template: ToolTemplate
) -> list[Plain] | list[int]:
    """Returns a request's chat; as token ids where it has functions, calls or results."""
    made = _plain_messages(asked)
    if asked.tools is None and not any("tool_calls" in m or m["role"] == "tool" for m in made):
        return made
    tools = [tool.plain() for tool in asked.tools or ()]
    chat = template.messages(made, tools)
    return encode_chat(model.tokenizer, chat, tools=tools if template.way == "template" else ())


def _check_names(tools: Sequence[Tool]) -> None:
    names = [tool.function.name for tool in tools]
    for n, name in enumerate(names):
        if name in names[:n]:
            raise FieldError(
                f"tools.{n}.function.name", f"two tools are called {name!r}: names tell them apart"
            )


def _callable(tool: Tool, field: str) -> Callable:
    """Returns a function whose calls can be held to its schema; raises FieldError."""
    name, schema = tool.function.name, tool.function.parameters
    if schema is None:
        schema = {"type": "object"}
    if schema.get("type") != "object":
        raise FieldError(
            f"{field}.parameters",
            f"parameters of tool {name!r} have type {schema.get('type')!r}, and arguments are an "
            'object: give a schema with "type": "object", or leave parameters out',
        )
    try:
        made = JsonSchema(schema, whitespace="spaced")
        made.byte_automaton()  # says what accepts nothing, or is too large
    except ValueError as error:
        raise FieldError(f"{field}.parameters", f"tool {name!r}: {error}") from error
    return Callable(name, made)


def _chosen(choice: ChosenTool, functions: Sequence[Callable]) -> Callable:
    for one in functions:
        if one.name == choice.function.name:
            return one
    known = ", ".join(one.name for one in functions)
    raise FieldError(
        "tool_choice", f"tool_choice names {choice.function.name!r}, and tools are {known}"
    )


def _plain_messages(asked: ChatRequest) -> list[Plain]:
    """Returns messages as chat templates know them; raises FieldError for what goes astray."""
    made: list[Plain] = []
    called: dict[str, str] = {}  # names of functions by the ids of their calls
    for n, message in enumerate(asked.messages):
        plain = _plain_message(message)
        if isinstance(message, AssistantMessage) and message.tool_calls is not None:
            plain["tool_calls"] = [
                _plain_call(call, f"messages.{n}.tool_calls.{m}")
                for m, call in enumerate(message.tool_calls)
            ]
            called |= {call.id: call.function.name for call in message.tool_calls}
        elif isinstance(message, AssistantMessage) and message.content is None:
            raise FieldError(
                f"messages.{n}.content", "an assistant's message has content, tool_calls or both"
            )
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in called:
                raise FieldError(
                    f"messages.{n}.tool_call_id",
                    f"no message before calls a tool under the id {message.tool_call_id!r}: give "
                    "the assistant's message with its tool_calls as well",
                )
            plain |= {"tool_call_id": message.tool_call_id, "name": called[message.tool_call_id]}
        made.append(plain)
    return made


def _plain_message(message: UserMessage | AssistantMessage | ToolMessage) -> Plain:
    content = message.content or ""
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


def _plain_call(call: Called, field: str) -> Plain:
    """Returns a call with its arguments as a mapping, which chat templates expect."""
    where = f"{field}.function.arguments"
    try:
        arguments: Any = parse_json(call.function.arguments, "arguments")
    except ValueError as error:
        raise FieldError(where, f"{where}: {error}") from error
    if not isinstance(arguments, Mapping):
        raise FieldError(where, f"{where} is {call.function.arguments!r}: give a JSON object")
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
