"""From what users give (text, chats, token ids, gaps) to token ids of prompts and slots."""

from __future__ import annotations

import reprlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

from dllm.infilling.gaps import Infill, Laid
from dllm.models.config import ModelSpec
from dllm.models.loading.tokenizer import encode_chat, encode_text
from dllm.models.model import DenoisingModel
from dllm.settings import Settings

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase

MOST_NEW_TOKENS = 2**20  # of a row, whatever a model's limit: they are listed before it runs

Message = Mapping[str, str]
Prompt = str | Infill | Sequence[int] | Sequence[Message]
Encoding = Mapping[str, Any]  # of a tokenizer: input_ids, and attention_mask if there is padding
Prompts = (
    Prompt
    | Sequence[str]
    | Sequence[Infill]
    | Sequence[Sequence[int]]
    | Sequence[Sequence[Message]]
    | torch.Tensor
    | Encoding
)


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt in token ids and what follows it; a slot with the mask id is open."""

    prompt: Sequence[int]
    slots: Sequence[int]
    infilled: bool = False  # the slots are those between and behind what was given
    hidden: int = 0  # slots behind the open ones that a gap grows into
    laid: Laid | None = None  # the template that the slots are of


def encode_all(model: DenoisingModel, prompts: Any, settings: Settings) -> list[Row]:
    """Returns the rows of a batch; raises ValueError or TypeError for what cannot be decoded.

    With a template they have no slots yet.
    """
    _check_ids(settings, model.spec)
    listed = _as_list(prompts)
    if not listed:
        raise ValueError("no prompts were given: the list is empty")
    slots, rows = cache(partial(_open_slots, model, settings)), []
    for index, prompt in enumerate(listed):
        row = _row(model, prompt, settings, f"prompt {index}", slots)
        check_row(index, row, model.spec)
        # A list may be long: 4 bytes a token, and none a slot, where those of all rows are alike.
        rows.append(replace(row, prompt=array("i", row.prompt)))
    return rows


def join(prompts: Any, encoding: Mapping[str, Any]) -> Any:
    """Returns prompts of what was given by place, or by the names that tokenizers have for it."""
    if not encoding:
        if prompts is None:
            raise TypeError("no prompts were given: generate(model, prompts, ...)")
        return prompts
    if prompts is not None and "input_ids" in encoding:
        raise TypeError("prompts and input_ids were given: leave one of them out")
    if prompts is None and "input_ids" not in encoding:
        raise TypeError("attention_mask was given without input_ids")
    return {"input_ids": prompts, **encoding}


def end_tokens(known: tuple[int, ...], given: int | list[int] | None) -> tuple[int, ...]:
    """Returns the end tokens of a generation: those given, else those known of the model."""
    if given is None:
        return known
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _check_ids(settings: Settings, spec: ModelSpec) -> None:
    """Raises ValueError for token ids of settings that the model does not have."""
    ends = settings.eos_token_id
    ends = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
    spec.check_token_ids("eos_token_id", ends)
    spec.check_token_ids("forbidden_token_ids", settings.forbidden_token_ids)
    spec.check_token_ids("deferred_token_ids", settings.deferred_token_ids)
    never = {spec.mask_token_id, *settings.forbidden_token_ids}
    if len(never) >= spec.vocab_size:
        raise ValueError("forbidden_token_ids holds every token: leave some to be generated")


def _as_list(prompts: Any) -> list[Any]:
    prompts = _plain(prompts)
    if isinstance(prompts, str | Infill):
        return [prompts]
    if _is_encoding(prompts):
        return _unpadded(prompts)
    if isinstance(prompts, Mapping):
        raise TypeError(
            f"a mapping with {', '.join(map(repr, prompts))} is no prompt: put chat messages into "
            "a list, [{'role': 'user', 'content': ...}], and token ids under 'input_ids'"
        )
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes | bytearray):
        raise TypeError(
            "prompts are text, chat messages, token ids, an Infill, what a tokenizer returns "
            f"(with input_ids), or a list of one of them, not {type(prompts).__name__}"
        )
    first = prompts[0] if prompts else None
    if isinstance(first, Integral | Mapping) and not _is_encoding(first):
        return [prompts]  # one prompt in token ids, or one chat
    encodings = [_unpadded(one) if _is_encoding(one) else [one] for one in prompts]
    return [prompt for several in encodings for prompt in several]


def _is_encoding(value: Any) -> bool:
    return isinstance(value, Mapping) and "input_ids" in value


def _plain(value: Any) -> Any:
    """Returns lists of numbers for a tensor or an array, other values as they are."""
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "shape") else value


def _unpadded(encoding: Mapping[str, Any]) -> list[list[int]]:
    """Returns the prompts of what a tokenizer returned, without what its mask says is padding."""
    if pictures := [key for key in encoding if str(key).startswith("pixel_values")]:
        raise TypeError(f"{pictures[0]}: images and videos are not read; give text alone")
    ids, masks = _plain(encoding["input_ids"]), _plain(encoding.get("attention_mask"))
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise TypeError(f"input_ids must be token ids, not {reprlib.repr(ids)}")
    if ids and isinstance(ids[0], Integral):
        ids, masks = [ids], None if masks is None else [masks]
    rows = [_plain(row) for row in ids]
    if masks is None:
        return rows
    masks = [_plain(mask) for mask in masks]
    if [len(mask) for mask in masks] != [len(row) for row in rows]:
        raise ValueError("attention_mask and input_ids differ in shape: give one entry a token")
    wrong = [entry for mask in masks for entry in mask if entry not in (0, 1)]
    if wrong:
        raise ValueError(
            f"attention_mask holds {reprlib.repr(wrong[0])}: 1 marks a token and 0 padding"
        )
    pairs = zip(rows, masks, strict=True)
    return [[t for t, seen in zip(row, mask, strict=True) if seen] for row, mask in pairs]


def _row(
    model: DenoisingModel,
    prompt: Any,
    settings: Settings,
    where: str,
    slots: Callable[[], Sequence[int]],
) -> Row:
    """Returns one row; `slots` are those behind a prompt that has none of its own."""
    mask = model.spec.mask_token_id
    if isinstance(prompt, Infill) and settings.template is not None:
        raise ValueError(f"{where} is an Infill, and template= says what is laid out: give one")
    if isinstance(prompt, Infill):
        return _split_at_gap(_encode_infill(model, prompt, where), mask)
    ids = _encode(model.tokenizer, prompt, where)
    if settings.infill:
        if mask not in ids:
            raise ValueError("infill=True, but the prompt holds no mask token to fill")
        return _split_at_gap(ids, mask)
    if mask in ids:
        raise ValueError(
            f"the prompt holds the mask token (id {mask}) at position {ids.index(mask)}: "
            "remove it, or pass infill=True to have it filled"
        )
    if settings.template is not None:
        return Row(ids, [])
    room = model.spec.max_length - len(slots())
    if settings.too_long == "cut" and 0 < room < len(ids):
        ids = ids[-room:]  # as evaluation harnesses do: what is asked stands at the end
    return Row(ids, slots())


def _open_slots(model: DenoisingModel, settings: Settings) -> tuple[int, ...]:
    """Returns the slots behind each prompt, with what `fixed` says they hold."""
    check_new("max_new_tokens", settings.max_new_tokens, model.spec)
    slots = [model.spec.mask_token_id] * settings.max_new_tokens
    for offset, kept in (settings.fixed or {}).items():
        _keep(slots, offset, kept, model)
    return tuple(slots)


def _keep(slots: list[int], offset: Any, kept: Any, model: DenoisingModel) -> None:
    """Writes one entry of `fixed` into its slots, each of which can be given once."""
    entry = f"fixed={{{offset!r}: {kept!r}}}"
    if isinstance(offset, bool) or not isinstance(offset, Integral):
        raise ValueError(f"{entry}: the slot must be a whole number, 0 for the first")
    if isinstance(kept, str):
        ids = encode_text(model.tokenizer, kept, False, entry)
    else:
        ids = [kept]
    model.spec.check_token_ids(f"{entry}: token id", ids)
    end = int(offset) + len(ids)
    if offset < 0 or end > len(slots):
        raise ValueError(f"{entry} does not fit the {len(slots)} new tokens")
    if any(token != model.spec.mask_token_id for token in slots[offset:end]):
        raise ValueError(f"{entry} lies over slots that another entry of fixed holds")
    slots[offset:end] = ids


def _encode(tokenizer: PreTrainedTokenizerBase | None, prompt: Any, where: str) -> list[int]:
    if isinstance(prompt, str):
        return encode_text(tokenizer, prompt, special=True, where=where)
    prompt = _plain(prompt)
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, bytes)
    parts: Sequence[Any] = prompt if listed else [None]
    if parts and all(isinstance(part, Mapping) for part in parts):
        return encode_chat(tokenizer, prompt, where)
    if all(isinstance(token, Integral) and not isinstance(token, bool) for token in parts):
        return [int(token) for token in parts]
    raise TypeError(
        f"{where} is {reprlib.repr(prompt)}: give text, chat messages, token ids, or a text with "
        'gaps, dllm.Infill("begin", 12, "end")'
    )


def _encode_infill(model: DenoisingModel, infill: Infill, where: str) -> list[int]:
    gaps = sum(part for part in infill.parts if not isinstance(part, str))
    check_new(f"{where}: the tokens to fill", gaps, model.spec)
    ids: list[int] = []
    for part in infill.parts:
        if not isinstance(part, str):
            ids += [model.spec.mask_token_id] * part
        elif part:
            ids += encode_text(model.tokenizer, part, special=not ids, where=where)
    return ids


def check_new(name: str, count: int, spec: ModelSpec) -> None:
    """Raises ValueError for more new tokens than can be, before a list of them is made."""
    if count > spec.max_length:
        raise ValueError(
            f"{name}={count} is over the model's limit of {spec.max_length} tokens, prompt and "
            "answer together: ask for fewer"
        )
    if count > MOST_NEW_TOKENS:
        raise ValueError(f"{name}={count} must be at most {MOST_NEW_TOKENS}: ask for fewer")


def _split_at_gap(ids: list[int], mask_token_id: int) -> Row:
    first = ids.index(mask_token_id)
    return Row(ids[:first], ids[first:], infilled=True)


def check_row(index: int, row: Row, spec: ModelSpec) -> None:
    """Raises ValueError for a row that is too long, or has token ids that the model has not."""
    length = len(row.prompt) + len(row.slots)
    fewer = "lower max_new_tokens" if row.laid is None else "give holes fewer tokens"
    if length > spec.max_length:
        raise ValueError(
            f"prompt {index} has {len(row.prompt)} tokens and with {len(row.slots)} new ones comes "
            f"to {length}, over the model's limit of {spec.max_length}: shorten the prompt or "
            f"{fewer}, or set too_long='cut' to leave out its beginning"
        )
    name = f"prompt {index}: token id"
    spec.check_token_ids(name, row.prompt)
    spec.check_token_ids(name, row.slots, mask=True)
    if spec.logit_shift and row.slots and not row.prompt:
        raise ValueError(
            f"prompt {index} is empty, but this model predicts each token from the one before: "
            "start with at least one token, such as its beginning-of-text token"
        )
