"""A model, what requests start from, and what decodes them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic

from dllm.models.model import DenoisingModel
from dllm.prompts import Prompt
from dllm.serve.asked import FieldError, naming_fields, prompts_of, settings_of
from dllm.serve.engine import Engine
from dllm.serve.fields import ChatRequest, CompletionRequest
from dllm.serve.job import Job, Update, jobs_of
from dllm.serve.measured import Measured
from dllm.serve.tools.chat import ToolTemplate, tool_template
from dllm.serve.tools.offered import calls_of, chat_of
from dllm.serve.transcript import Transcript
from dllm.settings import Settings


@dataclass(frozen=True)
class Limits:
    """What a client may ask for, and how long things may take."""

    max_tokens: int = 4096  # of one answer
    max_answers: int = 128  # of one request
    max_body: int = 4_000_000  # bytes
    body_seconds: float = 30.0  # for a body to come
    answer_seconds: float = 600.0  # from request to answer


@dataclass(frozen=True)
class Access:
    """Who is let in."""

    api_key: str | None = None  # None: everybody
    origins: tuple[str, ...] = ()  # of pages elsewhere that may ask


@dataclass(frozen=True)
class Service:
    """A model, the settings that requests start from, and what decodes them."""

    model: DenoisingModel
    name: str
    engine: Engine
    settings: Settings | None = None  # that requests start from; None: the checkpoint's
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    measured: Measured = field(default_factory=Measured)

    @property
    def transcript(self) -> Transcript:
        """How tokens become text."""
        assert self.model.tokenizer is not None
        return Transcript(self.model.tokenizer, self.model.spec.mask_token_id, (), ())

    @cached_property
    def tool_template(self) -> ToolTemplate:
        """What the chat template does with functions."""
        assert self.model.tokenizer is not None
        return tool_template(self.model.tokenizer)

    def jobs(
        self,
        asked: ChatRequest | CompletionRequest,
        tell: Callable[[int], Callable[[Update], None]],
    ) -> list[Job]:
        """Returns the jobs of a request; raises ValueError or TypeError for what cannot be."""
        settings = self._settings(asked)
        if settings.max_new_tokens > self.limits.max_tokens:
            raise FieldError(
                "max_tokens",
                f"max_tokens={settings.max_new_tokens} is more than the {self.limits.max_tokens} "
                "of this server: ask for fewer",
            )
        prompts, count = self._prompts(asked, settings), asked.n or 1
        if len(prompts) * count > self.limits.max_answers:
            raise FieldError(
                "n",
                f"{len(prompts)} prompt(s) with n={count} are more than {self.limits.max_answers} "
                "answers: send several requests",
            )
        seed = secrets.randbits(62) if asked.seed is None else asked.seed % 2**62
        jobs: list[Job] = []
        for number, prompt in enumerate(prompts):
            first = number * count
            seeds = [(seed + first + place) % 2**62 for place in range(count)]
            told_of = [tell(first + place) for place in range(count)]
            with naming_fields(asked):
                jobs += jobs_of(self.model, prompt, settings, seeds, told_of.__getitem__)
        deadline = monotonic() + self.limits.answer_seconds
        for job in jobs:
            job.deadline = deadline
            job.pieces = bool(asked.stream)
            job.drawn = bool(asked.stream) and asked.dllm.stream == "canvas"
        return jobs

    def _settings(self, asked: ChatRequest | CompletionRequest) -> Settings:
        """Returns the settings of a request, what it may call among them."""
        calls = calls_of(asked, self.tool_template) if isinstance(asked, ChatRequest) else None
        return settings_of(self.model, self.settings, asked, calls)

    def _prompts(
        self, asked: ChatRequest | CompletionRequest, settings: Settings
    ) -> Sequence[Prompt]:
        if isinstance(asked, ChatRequest):
            return [chat_of(self.model, asked, self.tool_template)]
        return prompts_of(asked, settings)

    def check_name(self, name: str) -> None:
        """Raises FieldError for a model that is not this one."""
        if name != self.name:
            raise FieldError("model", f"model {name!r} is not served here: {self.name!r} is")
