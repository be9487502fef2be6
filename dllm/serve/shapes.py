"""Answers in the shapes of OpenAI's API: whole, and as the events of a stream."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import time
from typing import Any

from dllm.serve.job import Answer, Drawn
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
                "finish_reason": _REASONS[answer.row.finish_reason],
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

    def part(self, number: int, text: str) -> dict[str, Any]:
        """Returns the event of further text of one choice."""
        choice = {"index": number, **self._part(text), "finish_reason": None, "logprobs": None}
        return {**self._head(self.part_object), "choices": [choice]}

    def end(self, number: int, answer: Answer, transcript: Transcript) -> dict[str, Any]:
        """Returns the event behind the text of one choice: how it ended, and what it took."""
        logprobs = self._logprobs(answer, transcript) if self.logprobs else None
        ended = {"finish_reason": _REASONS[answer.row.finish_reason], "logprobs": logprobs}
        choice = {"index": number, **self._part(None), **ended}
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


def chat_shape(model: str, logprobs: bool) -> Shape:
    """Returns the shape of one chat's completion."""
    kinds = ("chat.completion", "chat.completion.chunk")
    return ChatShape(model, logprobs, *kinds, id=f"chatcmpl-{secrets.token_hex(12)}")


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
        "queued_seconds": max(answer.queued_seconds for answer in answers),
        "decoding_seconds": max(answer.decoding_seconds for answer in answers),
    }


def _sure(answer: Answer, transcript: Transcript) -> list[tuple[str, float | None]]:
    """Returns the text of each token and the logarithm of its confidence when committed."""
    return [
        (transcript.token(token), math.log(max(sure, 1e-30)) if sure == sure else None)
        for token, sure in zip(answer.tokens, answer.confidence, strict=True)
    ]
