"""Texts of the lm-evaluation-harness as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from dllm.eval.lm_eval.arguments import ArgumentError
from dllm.eval.lm_eval.likelihood import Continuation
from dllm.models.config import ModelSpec
from dllm.prompts import encode_text


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
        text = str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in history],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )
        self.chats.add(text)
        return text

    def encode(self, text: str, chat: bool = False) -> list[int]:
        """Returns the ids of a text, with special tokens unless it brings its own."""
        begin = self.tokenizer.bos_token
        brought = chat or text in self.chats or bool(begin and text.startswith(str(begin)))
        return encode_text(self.tokenizer, text, special=not brought)

    def pair(self, context: str, continuation: str, spec: ModelSpec) -> Continuation:
        """Returns the ids of both together, of which those of the continuation are scored.

        Spaces at the end of the context go to the continuation, where tokenizers expect them. A
        token that the two share is scored, so that an answer never loses its first characters.
        """
        chat = context in self.chats
        given = self.encode(context.rstrip(), chat)
        whole = self.encode(context + continuation, chat)
        if spec.logit_shift and not given:
            first = self.tokenizer.bos_token_id
            whole = [spec.eos_token_ids[0] if first is None else first, *whole]
            given = whole[:1]
        same = (a == b for a, b in zip(given, whole, strict=False))
        return Continuation(tuple(whole), sum(takewhile(bool, same)))
