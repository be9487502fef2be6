"""From what users give (text, chats, token ids, gaps) to token ids of prompts and slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dllm.models.config import ModelSpec
from dllm.models.model import DenoisingModel
from dllm.settings import Settings


@dataclass(frozen=True)
class Infill:
    """A text with gaps: strings are kept, an integer n is a gap of n tokens to fill.

    `Infill("def f(x):", 12, "return x")` asks for the twelve tokens in between.
    """

    parts: tuple[str | int, ...]

    def __init__(self, *parts: str | int) -> None:
        if not any(isinstance(part, int) for part in parts):
            raise ValueError(f"Infill{parts!r} has no gap: give the number of tokens to fill")
        for part in parts:
            if isinstance(part, bool) or (isinstance(part, int) and part < 1):
                raise ValueError(f"Infill gap {part!r} must be a number of tokens of at least 1")
        object.__setattr__(self, "parts", parts)


Message = Mapping[str, str]
Prompt = str | Infill | Sequence[int] | Sequence[Message]
Prompts = Prompt | Sequence[str] | Sequence[Infill] | Sequence[Sequence[int]] | torch.Tensor


@dataclass(frozen=True)
class Row:
    """One prompt in token ids and what follows it; a slot with the mask id is open."""

    prompt: list[int]
    slots: list[int]


def encode_all(model: DenoisingModel, prompts: Any, settings: Settings) -> list[Row]:
    """Returns the rows of a batch; raises ValueError or TypeError for what cannot be decoded."""
    listed = _as_list(prompts)
    if not listed:
        raise ValueError("no prompts were given: the list is empty")
    rows = [_row(model, prompt, settings) for prompt in listed]
    for index, row in enumerate(rows):
        _check(index, row, model.spec)
    return rows


def encode_text(tokenizer: PreTrainedTokenizerBase | None, text: str, special: bool) -> list[int]:
    """Returns the token ids of a text, with the tokenizer's special tokens if asked for."""
    if tokenizer is None:
        raise ValueError("the model has no tokenizer: give token ids instead of text")
    return list(tokenizer.encode(text, add_special_tokens=special))


def _as_list(prompts: Any) -> list[Any]:
    if isinstance(prompts, torch.Tensor):
        prompts = prompts.tolist()
    if isinstance(prompts, str | Infill):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise TypeError(
            "prompts are text, chat messages, token ids, an Infill or a list of one of them, "
            f"not {type(prompts).__name__}"
        )
    if prompts and isinstance(prompts[0], int | Mapping):
        return [prompts]  # one prompt in token ids, or one chat
    return list(prompts)


def _row(model: DenoisingModel, prompt: Any, settings: Settings) -> Row:
    mask = model.spec.mask_token_id
    if isinstance(prompt, Infill):
        return _split_at_gap(_encode_infill(model, prompt), mask)
    ids = _encode(model.tokenizer, prompt)
    if settings.infill:
        if mask not in ids:
            raise ValueError("infill=True, but the prompt holds no mask token to fill")
        return _split_at_gap(ids, mask)
    if mask in ids:
        raise ValueError(
            f"the prompt holds the mask token (id {mask}) at position {ids.index(mask)}: "
            "remove it, or pass infill=True to have it filled"
        )
    slots = [mask] * settings.max_new_tokens
    for offset, kept in (settings.fixed or {}).items():
        ids_kept = [kept] if isinstance(kept, int) else encode_text(model.tokenizer, kept, False)
        if not 0 <= offset <= len(slots) - len(ids_kept):
            raise ValueError(
                f"fixed={{{offset}: {kept!r}}} does not fit the {len(slots)} new tokens"
            )
        slots[offset : offset + len(ids_kept)] = ids_kept
    room = model.spec.max_length - len(slots)
    if settings.too_long == "cut" and 0 < room < len(ids):
        ids = ids[-room:]  # as evaluation harnesses do: what is asked stands at the end
    return Row(ids, slots)


def _encode(tokenizer: PreTrainedTokenizerBase | None, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return encode_text(tokenizer, prompt, special=True)
    if isinstance(prompt, torch.Tensor):
        prompt = prompt.tolist()
    if (
        isinstance(prompt, Sequence)
        and all(isinstance(part, Mapping) for part in prompt)
        and prompt
    ):
        return _encode_chat(tokenizer, prompt)
    if isinstance(prompt, Sequence) and all(isinstance(token, int) for token in prompt):
        return list(prompt)
    raise TypeError(f"a prompt is text, chat messages or token ids, not {prompt!r}")


def _encode_chat(tokenizer: PreTrainedTokenizerBase | None, chat: Sequence[Message]) -> list[int]:
    if tokenizer is None or not tokenizer.chat_template:
        raise ValueError("the model has no chat template: give plain text instead of messages")
    for message in chat:
        if not {"role", "content"} <= set(message):
            raise ValueError(f"a chat message needs 'role' and 'content', not {dict(message)!r}")
    text = tokenizer.apply_chat_template(
        [dict(message) for message in chat], tokenize=False, add_generation_prompt=True
    )
    return encode_text(tokenizer, str(text), special=False)


def _encode_infill(model: DenoisingModel, infill: Infill) -> list[int]:
    ids: list[int] = []
    for part in infill.parts:
        if isinstance(part, int):
            ids += [model.spec.mask_token_id] * part
        elif part:
            ids += encode_text(model.tokenizer, part, special=not ids)
    return ids


def _split_at_gap(ids: list[int], mask_token_id: int) -> Row:
    first = ids.index(mask_token_id)
    return Row(ids[:first], ids[first:])


def _check(index: int, row: Row, spec: ModelSpec) -> None:
    length = len(row.prompt) + len(row.slots)
    if length > spec.max_length:
        raise ValueError(
            f"prompt {index} has {len(row.prompt)} tokens and with {len(row.slots)} new ones comes "
            f"to {length}, over the model's limit of {spec.max_length}: shorten the prompt or "
            "lower max_new_tokens, or set too_long='cut' to leave out its beginning"
        )
    wrong = [token for token in (*row.prompt, *row.slots) if not 0 <= token < spec.vocab_size]
    if wrong:
        raise ValueError(
            f"prompt {index} holds token id {wrong[0]}, outside the vocabulary of {spec.vocab_size}"
        )
    if spec.logit_shift and not row.prompt:
        raise ValueError(
            f"prompt {index} is empty, but this model predicts each token from the one before: "
            "start with at least one token, such as its beginning-of-text token"
        )
