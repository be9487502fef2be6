"""Answers in the shapes of OpenAI's API: whole, and as the events of a stream."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import time
from typing import Any

from dllm.serve.job import Answer, Drawn
from dllm.serve.tools.spoken import Telling, plain, spoken
from dllm.serve.transcript import Transcript

_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


@dataclass(frozen=True)
class Shape:
    """One request's answer; a subclass says how a choice is written."""

    model: str
    logprobs: bool  # confidence at commit, as the logarithm of a probability
    whole_object: str
    part_object: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time()))

    def whole(self, answers: Sequence[Answer], transcript: Transcript) -> dict[str, Any]:
        """Returns the body of an answer that is not streamed."""
        choices = [
            {
                "index": number,
                **self._choice(answer),
                "finish_reason": self._reason(answer),
                "logprobs": self._logprobs(answer, transcript) if self.logprobs else None,
            }
            for number, answer in enumerate(answers)
        ]
        return {
            **self._head(self.whole_object),
            "choices": choices,
            "usage": usage(answers),
            "dllm": figures(answers),
        }

    def part(self, number: int, text: str) -> dict[str, Any] | None:
        """Returns the event of further text of one choice; None: there is none yet."""
        return self._event(number, self._part(text))

    def end(self, number: int, answer: Answer, transcript: Transcript) -> dict[str, Any]:
        """Returns the event behind the text of one choice: how it ended, and what it took."""
        logprobs = self._logprobs(answer, transcript) if self.logprobs else None
        ended = {"finish_reason": self._reason(answer), "logprobs": logprobs}
        choice = {"index": number, **self._last(number, answer), **ended}
        return {**self._head(self.part_object), "choices": [choice], "dllm": figures([answer])}

    def first(self, number: int) -> dict[str, Any] | None:
        """Returns the event before a choice's text; None: there is none."""
        return None

    def last(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns the event behind all choices: the tokens of all of them."""
        return {**self._head(self.part_object), "choices": [], "usage": usage(answers)}

    def drawn(self, number: int, step: Drawn) -> dict[str, Any]:
        """Returns an event of one step of one choice."""
        canvas = {"index": number, **asdict(step)}
        return {**self._head(self.part_object), "choices": [], "dllm": {"canvas": canvas}}

    def _event(self, number: int, part: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": number, **part, "finish_reason": None, "logprobs": None}
        return {**self._head(self.part_object), "choices": [choice]}

    def _reason(self, answer: Answer) -> str:
        # In its language to the last slot, it is as complete as one that ends before.
        return "stop" if answer.whole else _REASONS[answer.row.finish_reason]

    def _last(self, number: int, answer: Answer) -> dict[str, Any]:
        """Returns what the last event of a choice tells of its text."""
        return self._part(None)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def _part(self, text: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _logprobs(self, answer: Answer, transcript: Transcript) -> dict[str, Any]:
        raise NotImplementedError


class ChatShape(Shape):
    """The shape of a chat's completion."""

    def first(self, number: int) -> dict[str, Any] | None:
        """Returns the event that says who speaks."""
        choice = {"index": number, "delta": {"role": "assistant", "content": ""}}
        more = {"finish_reason": None, "logprobs": None}
        return {**self._head(self.part_object), "choices": [{**choice, **more}]}

    def _choice(self, answer: Answer) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": answer.text, "refusal": None}}

    def _part(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text}}

    def _logprobs(self, answer: Answer, transcript: Transcript) -> dict[str, Any]:
        content = [
            {"token": text, "bytes": list(text.encode()), "logprob": logprob, "top_logprobs": []}
            for text, logprob in _sure(answer, transcript)
        ]
        return {"content": content, "refusal": None}


@dataclass(frozen=True)
class CallingShape(ChatShape):
    """The shape of a chat's completion that may call functions."""

    _tellings: dict[int, Telling] = field(default_factory=dict)  # of each choice, in a stream

    def first(self, number: int) -> dict[str, Any] | None:
        """Returns the event that says who speaks."""
        return self._event(number, {"delta": {"role": "assistant", "content": None}})

    def part(self, number: int, text: str) -> dict[str, Any] | None:
        """Returns the event of further text or calls of one choice; None: nothing is sure yet."""
        telling = self._tellings.setdefault(number, Telling())
        delta = telling.more(telling.text + text, whole=False)
        return self._event(number, {"delta": delta}) if delta else None

    def _last(self, number: int, answer: Answer) -> dict[str, Any]:
        telling = self._tellings.setdefault(number, Telling())
        return {"delta": telling.more(answer.text, whole=True)}

    def _reason(self, answer: Answer) -> str:
        called = spoken(answer.text, whole=True).calls
        return "tool_calls" if called else super()._reason(answer)

    def _choice(self, answer: Answer) -> dict[str, Any]:
        said = spoken(answer.text, whole=True)
        message: dict[str, Any] = {"role": "assistant", "content": said.content or None}
        message["refusal"] = None
        if said.calls:
            message["tool_calls"] = list(map(plain, said.calls))
        return {"message": message}


class TextShape(Shape):
    """The shape of a text's completion."""

    def _choice(self, answer: Answer) -> dict[str, Any]:
        return {"text": answer.text}

    def _part(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}

    def _logprobs(self, answer: Answer, transcript: Transcript) -> dict[str, Any]:
        listed = list(_sure(answer, transcript))
        texts = [text for text, _ in listed]
        offsets = [sum(map(len, texts[:place])) for place in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [logprob for _, logprob in listed],
            "top_logprobs": None,
            "text_offset": offsets,
        }


def chat_shape(model: str, logprobs: bool, calls: bool = False) -> Shape:
    """Returns the shape of one chat's completion, which may call functions."""
    kinds = ("chat.completion", "chat.completion.chunk")
    made = CallingShape if calls else ChatShape
    return made(model, logprobs, *kinds, id=f"chatcmpl-{secrets.token_hex(12)}")


def text_shape(model: str, logprobs: bool) -> Shape:
    """Returns the shape of one text's completion."""
    kinds = ("text_completion", "text_completion")
    return TextShape(model, logprobs, *kinds, id=f"cmpl-{secrets.token_hex(12)}")


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns the tokens that were read and written; a prompt counts once for each answer."""
    read = sum(answer.row.prompt_tokens for answer in answers)
    written = sum(answer.row.valid_tokens for answer in answers)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns what answers took: forwards, and seconds until the last of them was there."""
    written = sum(answer.row.valid_tokens for answer in answers)
    forwards = sum(answer.row.forwards for answer in answers)
    return {
        "forwards": forwards,
        "tokens_per_forward": written / forwards if forwards else 0.0,
        "forced": sum(answer.row.forced for answer in answers),
        "reused_columns": sum(answer.reused for answer in answers),
        "queued_seconds": max(answer.queued_seconds for answer in answers),
        "decoding_seconds": max(answer.decoding_seconds for answer in answers),
    }


def _sure(answer: Answer, transcript: Transcript) -> list[tuple[str, float | None]]:
    """Returns the text of each token and the logarithm of its confidence when committed."""
    return [
        (transcript.token(token), math.log(max(sure, 1e-30)) if sure == sure else None)
        for token, sure in zip(answer.tokens, answer.confidence, strict=True)
    ]
