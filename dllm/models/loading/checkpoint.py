"""A checkpoint: its folder, its settings and tokenizer, and what decoding must know of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dllm.models.config import CheckpointError, ModelSpec, NetworkConfig, printable
from dllm.models.diffusion_gemma import is_diffusion_gemma, text_part
from dllm.models.families import Family, find_family
from dllm.models.families.e2d2 import BASE
from dllm.models.loading.files import PLAIN, StoredTensor, list_tensors, read_json, stream_tensors
from dllm.models.loading.folder import CONFIG, TOKENIZER, Source, find_folder, read_config
from dllm.models.loading.quantised import read_rounding
from dllm.models.loading.tokenizer import find_token, read_tokenizer
from dllm.models.loading.weights import parse_dtype
from dllm.models.speed.rounded import Rounding

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

GENERATION = "generation_config.json"
RECIPE = "recipe.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read field by field; each raises what is wrong with it."""

    name: str  # "tiny", a folder or a hub id
    source: Source = field(default_factory=Source)
    other_tokenizer: PreTrainedTokenizerBase | str | None = None  # in the place of its own
    attention: tuple[str, int | None] | None = None  # asked for, with its block; None: its own

    @cached_property
    def root(self) -> Path:
        """The folder that was named; a hub id is downloaded."""
        return find_folder(self.name, self.source)

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.root / self.source.subfolder

    @property
    def commit(self) -> str | None:
        """Its commit in the hub's cache, which keeps each in a folder of its name."""
        return self.root.name if self.root.parent.name == "snapshots" else None

    @property
    def recipe(self) -> dict[str, Any] | None:
        """What `dllm tune` found for it, None if nothing lies in its folder."""
        path = self.folder / RECIPE
        return read_json(path) if path.is_file() else None

    @property
    def elsewhere(self) -> Source:
        """Where other checkpoints are looked up that this one needs something of."""
        return replace(self.source, revision=None, subfolder="")

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json; one that others quantised is refused."""
        config = read_config(self.folder)
        if self.attention is None:
            return config
        return find_family(config).with_attention(config, *self.attention)

    @cached_property
    def described(self) -> dict[str, Any]:
        """Its config.json, with that of the checkpoint it names for its shape, if it needs one."""
        base = None if self.family.base_of is None else self.family.base_of(self.config)
        if base is None:
            return self.config
        try:
            there = read_json(find_folder(base, self.elsewhere, (CONFIG,)) / CONFIG)
        except CheckpointError as error:
            way = f"{error}. Or put that object into this file, as {BASE!r}"
            raise CheckpointError(f"config.json takes its shape from {base!r}: {way}") from error
        return {**self.config, BASE: there}

    @property
    def is_diffusion_gemma(self) -> bool:
        """Whether transformers' own class runs it, and no family of the project."""
        return is_diffusion_gemma(self.config)

    @cached_property
    def family(self) -> Family:
        """The family that can host it."""
        return find_family(self.config)

    @cached_property
    def generation(self) -> dict[str, Any]:
        """Its generation_config.json, if it has one."""
        path = self.folder / GENERATION
        return read_json(path) if path.is_file() else {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer, None when it has no tokenizer files; or the one given instead."""
        given = self.other_tokenizer
        if given is None:
            return read_tokenizer(self.folder)
        if not isinstance(given, str):
            return given
        folder = find_folder(given, self.elsewhere, TOKENIZER)
        found = read_tokenizer(folder)
        if found is None:
            raise CheckpointError(f"tokenizer={given!r}: {folder} has no tokenizer files")
        return found

    @property
    def rounding(self) -> Rounding | None:
        """How its weights are rounded; None: they are floats."""
        return read_rounding(self.config, self.folder)

    @cached_property
    def network(self) -> NetworkConfig:
        """The shape of its network."""
        return self.family.read_network(self.described)

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Its tensors, from the headers of its files."""
        return list_tensors(self.folder)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that its config.json names, else its first tensor's."""
        # transformers 5 calls the key `dtype`, and takes it where both are there.
        names = {key: self.config[key] for key in ("dtype", "torch_dtype") if self.config.get(key)}
        if not names:
            plain = [name for name, tensor in self.stored.items() if tensor.kind in PLAIN]
            return next(stream_tensors(self.stored, [min(plain)]))[1].dtype
        try:
            found = [parse_dtype(name) for name in names.values()]
        except ValueError as error:
            raise CheckpointError(f"config.json: {error}") from None
        if len(set(found)) > 1:
            _warn(f"config.json has {_listed(names)}: dtype is taken; remove the other")
        return found[0]

    @cached_property
    def spec(self) -> ModelSpec:
        """Its special tokens, limits and attention."""
        family, eos, mask = self.family, self.eos, self._mask()
        attention = family.read_attention(self.config)
        trained = [word for word in family.block_words if word in self.name.lower()]
        if trained and self.attention is None and attention != "block_causal":
            _warn(
                f"{self.name} is loaded with {attention} attention, as its config.json says of no "
                f"block, but {trained[0]!r} in its name is for models trained on blocks: give "
                "attention='block_causal' and block_length (--attention block_causal:32)"
            )
        # Padding is hidden from attention, so any token will do where none is named.
        first = _ids("pad_token_id", self.generation, GENERATION)
        named = (*first, *_ids("pad_token_id", self.config))
        pad = next(token for token in (*named, *eos, 0, 1) if token != mask)
        try:
            spec = ModelSpec(
                vocab_size=self.network.vocab_size,
                max_length=family.read_max_length(self.described),
                mask_token_id=mask,
                eos_token_ids=eos,
                pad_token_id=pad,
                logit_shift=family.logit_shift,
                attention=attention,
                block_length=family.read_block_length(self.described),
                blocks_from=family.blocks_from if attention == "block_causal" else "zero",
                expand_token_id=find_token(self.tokenizer, family.expand_tokens),
            )
            spec.check_token_ids("pad_token_id", named, mask=True)
        except CheckpointError:  # it names its key
            raise
        except ValueError as error:
            raise CheckpointError(f"{error} (in config.json, {GENERATION} or tokenizer)") from error
        return spec

    def _mask(self) -> int:
        """Returns the id of the mask token: the configuration's, else the tokenizer's."""
        family, spellings = self.family, " or ".join(self.family.mask_tokens)
        named = _ids("mask_token_id", self.config)
        also = _ids("mask_token_id", self.generation, GENERATION)
        if len(named) > 1:
            raise CheckpointError(f"mask_token_id is {list(named)}; expected one token id")
        known = find_token(self.tokenizer, family.mask_tokens)
        if known is None and named and self.tokenizer is not None:
            known = self.tokenizer.mask_token_id  # of another spelling
        places = {"config.json": named[:1], "the tokenizer": (known,), GENERATION: also[:1]}
        found = {place: ids[0] for place, ids in places.items() if ids and ids[0] is not None}
        if not found:
            lack = f" and its tokenizer has no {spellings}"
            if self.tokenizer is None:
                lack = f", and there is no tokenizer to look up {spellings} in"
            raise CheckpointError(
                f"config.json of {family.architecture} has no mask_token_id{lack}; add "
                "mask_token_id to config.json"
            )
        first, token = next(iter(found.items()))
        if len(set(found.values())) > 1:
            _warn(f"the mask token differs: {_listed(found)}. That of {first} is taken; mend it")
        return token

    @cached_property
    def eos(self) -> tuple[int, ...]:
        """The ids that end an answer; the first of them fills a finished row."""
        for_text = _ids("eos_token_id", self.generation, GENERATION)
        alone = self.is_diffusion_gemma  # without a family
        base = _ids("eos_token_id", text_part(self.config) if alone else self.config)
        if for_text and base and not set(for_text) & set(base):
            _warn(
                f"the end tokens differ: {GENERATION} has {list(for_text)} and config.json "
                f"{list(base)}. All of them end an answer; remove those that should not"
            )
        eos = [*for_text, *base]
        if self.tokenizer is not None:
            turn_end = find_token(self.tokenizer, () if alone else self.family.turn_ends)
            eos += [t for t in (self.tokenizer.eos_token_id, turn_end) if t is not None]
        if not eos:
            raise CheckpointError(
                "no eos_token_id in config.json, generation_config.json or the tokenizer; add it "
                "to config.json"
            )
        return tuple(dict.fromkeys(eos))


def _ids(key: str, source: Mapping[str, Any], file: str = CONFIG) -> tuple[int, ...]:
    """Returns the token ids of a key: one, a list of them, or none."""
    value = source.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    wrong = [token for token in ids if isinstance(token, bool) or not isinstance(token, int)]
    if wrong:
        raise CheckpointError(
            f"{key} is {wrong[0]!r} in {file}; expected a token id or a list of them"
        )
    return tuple(dict.fromkeys(ids))


def _listed(values: Mapping[str, Any]) -> str:
    return " and ".join(f"{name}: {value!r}" for name, value in values.items())


def _warn(text: str) -> None:
    logger.warning("%s", printable(text))
