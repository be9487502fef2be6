"""The requests of the lm-evaluation-harness, in token ids and settings."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from dllm.eval.lm_eval.arguments import ArgumentError, Wishes, seed_of, stops
from dllm.eval.lm_eval.likelihood import Continuation
from dllm.models.config import ModelSpec
from dllm.models.loading.tokenizer import encode_text, render_chat
from dllm.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A request to generate, ready to be decoded."""

    prompt: list[int]
    settings: Settings  # without the request's seed
    seed: int
    until: tuple[str, ...]
    about: Mapping[str, Any]  # which request it is
    num_cut: int = 0  # tokens that were dropped from the prompt's beginning

    def cut(self, text: str) -> str:
        """Returns the text up to the earliest stop."""
        ends = [at for at in (text.find(stop) for stop in self.until) if at >= 0]
        return text[: min(ends)] if ends else text


@dataclass
class Encoder:
    """Texts to token ids; texts that come from the chat template have their special tokens."""

    tokenizer: PreTrainedTokenizerBase
    chats: set[str] = field(default_factory=set)

    def chat(self, history: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Returns messages in the chat template, which `encode` then knows.

        Without `add_generation_prompt` the last message is left open, to be continued.
        """
        if not self.tokenizer.chat_template:
            raise ArgumentError(
                "the checkpoint has no chat template: leave out --apply_chat_template"
            )
        text = render_chat(
            self.tokenizer, history, continue_final_message=not add_generation_prompt
        )
        self.chats.add(str(text))
        return str(text)

    def encode(self, text: str, chat: bool = False) -> list[int]:
        """Returns the ids of a text, with special tokens unless it brings its own."""
        begin = self.tokenizer.bos_token
        has_own = chat or text in self.chats or bool(begin and text.startswith(str(begin)))
        return encode_text(self.tokenizer, text, special=not has_own)

    def pair(self, context: str, continuation: str, spec: ModelSpec) -> Continuation:
        """Returns the ids of both together, of which those of the continuation are scored.

        Spaces at the end of the context go to the continuation, where tokenizers expect them. A
        token that the two share is scored, so that an answer never loses its first characters.
        """
        chat = context in self.chats
        first = self.encode(context.rstrip(), chat)
        whole = self.encode(context + continuation, chat)
        if spec.logit_shift and not first:
            begin = self.tokenizer.bos_token_id
            whole = [spec.eos_token_ids[0] if begin is None else begin, *whole]
            first = whole[:1]
        same = (a == b for a, b in zip(first, whole, strict=False))
        return Continuation(tuple(whole), sum(takewhile(bool, same)))


def read_asked(requests: Sequence[Any], encoder: Encoder, wishes: Wishes) -> list[Asked]:
    """Returns the requests of `generate_until` with their prompts, settings and seeds.

    Raises ArgumentError for one that does not fit the model, unless prompts may be cut.
    """
    asked = [
        Asked(
            prompt=encoder.encode(context),
            settings=wishes.settings(arguments),
            seed=seed_of(wishes.seed, "generate_until", context, arguments, time),
            until=stops(arguments.get("until")),
            about=about(request),
        )
        for request, time in _times(requests)
        for context, arguments in [request.args[:2]]
    ]
    over = _over([(len(item.prompt), item.settings.max_new_tokens) for item in asked], wishes)
    return [
        replace(item, prompt=item.prompt[cut:], num_cut=cut)
        for item, cut in zip(asked, over, strict=True)
    ]


def read_pairs(requests: Sequence[Any], encoder: Encoder, wishes: Wishes) -> list[Continuation]:
    """Returns the requests of `loglikelihood` with their seeds, likewise."""
    pairs = [
        replace(
            encoder.pair(context, continuation, wishes.model.spec),
            seed=seed_of(wishes.seed, "loglikelihood", context, continuation, time),
        )
        for request, time in _times(requests)
        for context, continuation in [request.args[:2]]
    ]
    over = _over([(item.start, len(item.tokens) - item.start) for item in pairs], wishes)
    return [
        replace(item, tokens=item.tokens[cut:], start=item.start - cut)
        for item, cut in zip(pairs, over, strict=True)
    ]


def about(request: Any) -> dict[str, Any]:
    """Returns which request it is, for the file of costs."""
    return {"task": request.task_name, "doc_id": request.doc_id, "choice": request.idx}


def _times(requests: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    """Yields requests with how often they came before, so that repeats draw anew."""
    seen: Counter[str] = Counter()
    for request in requests:
        key = repr(request.args)
        yield request, seen[key]
        seen[key] += 1


def batches(asked: Sequence[Asked], size: int) -> Iterator[list[int]]:
    """Yields the numbers of requests that are decoded together, long prompts first.

    They have the same settings. The longest come first, so that memory runs out at once or never.
    """
    keys = [(repr(item.settings), -len(item.prompt)) for item in asked]
    order = sorted(range(len(asked)), key=keys.__getitem__)
    for _, group in groupby(order, key=lambda i: keys[i][0]):
        alike = list(group)
        yield from (alike[begin : begin + size] for begin in range(0, len(alike), size))


def _over(lengths: Sequence[tuple[int, int]], wishes: Wishes) -> list[int]:
    """Returns how many tokens to drop from the beginning of each (context, rest)."""
    limit, least = wishes.model.spec.max_length, wishes.model.spec.logit_shift
    over = [max(context + rest - limit, 0) for context, rest in lengths]
    if not any(over):
        return over
    worst = over.index(max(over))
    context, rest = lengths[worst]
    message = (
        f"{sum(map(bool, over))} of {len(over)} requests are too long for the model's limit of "
        f"{limit} tokens: one has {context} of context and {rest} to write or score"
    )
    if any(rest + least > limit for _, rest in lengths):
        raise ArgumentError(f"{message}; give a smaller gen_length in --model_args")
    if wishes.arguments.too_long == "error":
        raise ArgumentError(
            f"{message}; give a smaller gen_length or too_long=cut, which drops the beginning of "
            "the context, in --model_args, or fewer shots"
        )
    logger.warning("%s; the beginning of such contexts is dropped (too_long=cut)", message)
    return over
