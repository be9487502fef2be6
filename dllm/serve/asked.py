"""From the fields of a request to prompts and settings, which name no file of the server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dllm.constraints import JsonSchema
from dllm.infilling.gaps import Infill
from dllm.models.model import DenoisingModel
from dllm.prompts import Prompt
from dllm.serve.fields import ChatRequest, Common, CompletionRequest
from dllm.serve.tools.language import ToolCalls
from dllm.settings import PARTS, Settings, resolve

# Settings that a request's object `dllm` may hold, beside options of schedulers.
OWN_SETTINGS = (
    *("scheduler", "cache", "verifier", "block_length", "blocks_from", "steps", "confidence"),
    *("guidance_scale", "at_eos", "forbid_eos", "defer_eos", "min_new_tokens", "top_k"),
    *("forbidden_token_ids", "deferred_token_ids", "repetition_penalty", "fixed"),
    *("constraint", "joint", "too_long"),
)
_OWN_CLASS = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")  # a class of another module
_PATH = re.compile(r"[/\\~]|\.py\b")


class FieldError(ValueError):
    """A field of a request that cannot be; None: nothing says which."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field = field


def settings_of(
    model: DenoisingModel, base: Settings | None, asked: Common, calls: ToolCalls | None = None
) -> Settings:
    """Returns the settings of a request over those of the server; raises FieldError.

    `calls` are answers that call functions, where the request offers any.
    """
    named = _usual(asked)
    own = asked.dllm.settings()
    for name, value in own.items():
        if name not in OWN_SETTINGS:
            known = ", ".join(OWN_SETTINGS)
            raise FieldError(f"dllm.{name}", f"unknown field dllm.{name}: known are {known}")
        _check_words(name, value)
    if isinstance(asked, ChatRequest) and (schema := _schema(asked)) is not None:
        if "constraint" in own:
            raise FieldError("response_format", "response_format and dllm.constraint: leave one")
        named["constraint"] = JsonSchema(schema)
    if calls is not None:
        if "constraint" in own:
            raise FieldError("tools", "tools and dllm.constraint: leave one")
        named["constraint"] = calls
    with naming_fields(asked):
        return resolve(model.defaults, base, {**named, **own})


def prompts_of(asked: CompletionRequest, settings: Settings) -> list[Prompt]:
    """Returns the prompts of a text's completion."""
    prompt = asked.prompt
    several = isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))
    listed: list[Any] = list(prompt) if several else [prompt]
    if not listed or any(len(one) == 0 for one in listed):
        raise FieldError("prompt", "prompt is empty: give a text or token ids")
    if asked.suffix is None:
        return listed
    if not all(isinstance(one, str) for one in listed):
        raise FieldError("suffix", "suffix goes with a prompt of text, not with token ids")
    return [Infill(one, settings.max_new_tokens, asked.suffix) for one in listed]


def _usual(asked: Common) -> dict[str, Any]:
    """Returns the settings that OpenAI's fields stand for."""
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    most = asked.max_tokens
    if isinstance(asked, ChatRequest) and asked.max_completion_tokens is not None:
        if most is not None and most != asked.max_completion_tokens:
            raise FieldError("max_tokens", "max_tokens and max_completion_tokens differ")
        most = asked.max_completion_tokens
    named = {
        "max_new_tokens": most,
        "temperature": asked.temperature,
        "top_p": None if asked.top_p == 1 else asked.top_p,
        "stop": tuple(stop) if stop else None,
    }
    return {name: value for name, value in named.items() if value is not None}


def _schema(asked: ChatRequest) -> Mapping[str, Any] | bool | None:
    """Returns the schema that an answer must follow; None: it may be any text."""
    form = asked.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object"}
    if form.json_schema is None:
        raise FieldError("response_format.json_schema", "response_format.json_schema is missing")
    return form.json_schema.schema_


def _check_words(name: str, value: Any) -> None:
    """Raises FieldError for what names a file, or a class that is not this package's."""
    if name == "constraint":
        if any(set(one) == {"file"} and isinstance(one["file"], str) for one in _mappings(value)):
            raise FieldError("dllm.constraint", "dllm.constraint names a file: give its content")
        return
    if name not in PARTS:
        return
    known = PARTS[name].names()
    for text in _texts(value):
        foreign = [m[1] for m in _OWN_CLASS.finditer(text) if m[1] not in known]
        if foreign or _PATH.search(text):
            raise FieldError(
                f"dllm.{name}",
                f"dllm.{name}={text!r} names a file or a module, which a request cannot: "
                f"known are {', '.join(known)}",
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _mappings(one)


_NAMES = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p"}


@contextmanager
def naming_fields(asked: Common) -> Iterator[None]:
    """Turns what is wrong with a setting into what is wrong with the field that it came from."""
    try:
        yield
    except FieldError:
        raise
    except (ValueError, TypeError) as error:
        message, own = str(error), asked.dllm.settings()
        fields = {name: field for name, field in _NAMES.items() if name not in own}
        fields |= {name: f"dllm.{name}" for name in own}
        found = next((name for name in fields if re.search(rf"\b{name}\b", message)), None)
        if found in _NAMES:
            message = message.replace(str(found), _NAMES[found])
        field = "tools" if message.startswith("ToolCalls(") else None
        raise FieldError(field if found is None else fields[found], message) from error
