"""Reads what decoding must know of a checkpoint from its settings and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from dllm.models.config import CheckpointError, ModelSpec, NetworkConfig
from dllm.models.families.family import Family
from dllm.models.loading.tokenizer import find_token


@dataclass(frozen=True)
class Settings:
    """The settings of a checkpoint folder."""

    config: Mapping[str, Any]  # config.json
    generation: Mapping[str, Any]  # generation_config.json
    tokenizer: PreTrainedTokenizerBase | None

    def ids(self, key: str) -> tuple[int, ...]:
        """Returns a key's token ids, those of generation_config.json before config.json's."""
        found: list[int] = []
        for source in (self.generation, self.config):
            value = source.get(key)
            found += value if isinstance(value, list) else [] if value is None else [value]
        wrong = [token for token in found if isinstance(token, bool) or not isinstance(token, int)]
        if wrong:
            raise CheckpointError(f"{key} is {wrong[0]!r}; expected a token id or a list of them")
        return tuple(dict.fromkeys(found))


def read_spec(family: Family, network: NetworkConfig, settings: Settings) -> ModelSpec:
    """Returns the special tokens, limits and attention of a checkpoint."""
    eos = read_eos(family, settings)
    return ModelSpec(
        vocab_size=network.vocab_size,
        max_length=family.read_max_length(settings.config),
        mask_token_id=read_mask(family, settings),
        eos_token_ids=eos,
        # Padding is hidden from attention, so any token will do where none is named.
        pad_token_id=(*settings.ids("pad_token_id"), *eos)[0],
        logit_shift=family.logit_shift,
        attention=family.attention,
        block_length=family.read_block_length(settings.config),
    )


def read_mask(family: Family, settings: Settings) -> int:
    """Returns the id of the mask token: the configuration's, else the tokenizer's."""
    named = Settings(settings.config, {}, None).ids("mask_token_id")
    if named:
        return named[0]
    spellings = " or ".join(family.mask_tokens)
    if settings.tokenizer is None:
        raise CheckpointError(
            f"config.json of {family.architecture} has no mask_token_id, and there is no "
            f"tokenizer to look up {spellings} in; add mask_token_id to config.json"
        )
    token = find_token(settings.tokenizer, family.mask_tokens)
    if token is None:
        raise CheckpointError(
            f"config.json of {family.architecture} has no mask_token_id and its tokenizer has no "
            f"{spellings}; add mask_token_id to config.json"
        )
    return token


def read_eos(family: Family, settings: Settings) -> tuple[int, ...]:
    """Returns the ids that end an answer; the first of them fills a finished row."""
    tokenizer = settings.tokenizer
    eos = settings.ids("eos_token_id")
    if tokenizer is not None:
        named = (tokenizer.eos_token_id, find_token(tokenizer, family.turn_ends))
        eos = tuple(dict.fromkeys((*eos, *(token for token in named if token is not None))))
    if not eos:
        raise CheckpointError(
            "no eos_token_id in config.json, generation_config.json or the tokenizer; add it to "
            "config.json"
        )
    return eos
