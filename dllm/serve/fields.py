"""The requests that a client may send, field by field; what is not here is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from dllm.serve.tools.fields import Called, Strict, Tool, ToolChoice

Finite = Annotated[float, Field(allow_inf_nan=False)]
Some = Annotated[StrictInt, Field(ge=1)]


class TextPart(Strict):
    """A part of a message; pictures and sound are not read."""

    type: Literal["text"]
    text: StrictStr


Content = StrictStr | list[TextPart]


class UserMessage(Strict):
    """What a user says, or an introduction."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: StrictStr | None = None


class AssistantMessage(Strict):
    """An earlier answer: text, calls or both."""

    role: Literal["assistant"]
    content: Content | None = None
    name: StrictStr | None = None
    tool_calls: Annotated[list[Called], Field(min_length=1)] | None = None
    # Of answers that are sent back as they came: only the values that say nothing.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Strict):
    """What came of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: StrictStr
    name: StrictStr | None = None


Message = Annotated[UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class JsonSchemaFormat(Strict):
    """A schema with its name, as OpenAI's clients send it."""

    name: StrictStr
    schema_: Mapping[str, Any] | bool = Field(alias="schema")
    description: StrictStr | None = None
    strict: StrictBool | None = None


class ResponseFormat(Strict):
    """What the text of an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StreamOptions(Strict):
    """What a stream holds beside its text."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


class OwnFields(BaseModel):
    """The object `dllm`: settings of this package by name, and how much is told of the steps."""

    model_config = ConfigDict(extra="allow")

    stream: Literal["text", "canvas"] = "text"

    def settings(self) -> dict[str, Any]:
        """Returns the settings by name."""
        return dict(self.model_extra or {})


class Common(Strict):
    """Fields of both kinds of completion."""

    model: StrictStr
    max_tokens: Some | None = None
    temperature: Finite | None = None
    top_p: Finite | None = None
    seed: StrictInt | None = None
    stop: StrictStr | list[StrictStr] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    dllm: OwnFields = Field(default_factory=OwnFields)
    # Of these only the values that change nothing.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, Finite], Field(max_length=0)] | None = None
    # Accepted without effect, see docs/guides/serving.md.
    user: StrictStr | None = None


class ChatRequest(Common):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Some | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Literal[0] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    modalities: list[Literal["text"]] | None = None
    # Accepted without effect.
    metadata: dict[str, str] | None = None
    store: StrictBool | None = None
    service_tier: StrictStr | None = None
    safety_identifier: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None


class CompletionRequest(Common):
    """The body of /v1/completions."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    suffix: StrictStr | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=0)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
