"""A checkpoint: its folder, its settings and tokenizer, and what decoding must know of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from dllm.models.config import CheckpointError, ModelSpec, NetworkConfig
from dllm.models.families import Family, find_family
from dllm.models.loading.files import StoredTensor, list_tensors, read_json, stream_tensors
from dllm.models.loading.weights import parse_dtype

EMBEDDED = Path(__file__).parents[2] / "tiny" / "checkpoint"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")

# Never pickles, never code.
DOWNLOADED = ["*.safetensors", "*.json", "merges.txt", "*.jinja"]

COMPLETE = "tokenizer.json"
BYTE_LEVEL = ("vocab.json", "merges.txt")
OTHER = ("tokenizer_config.json", "tokenizer.model", *BYTE_LEVEL)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read field by field; each raises what is wrong with it."""

    name: str  # "tiny", a folder or a hub id
    revision: str | None = None  # of a hub id

    @cached_property
    def folder(self) -> Path:
        """Its folder; a hub id is downloaded."""
        return find_folder(self.name, self.revision)

    @property
    def commit(self) -> str | None:
        """Its commit in the hub's cache, which keeps each in a folder of its name."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json; a quantised checkpoint is refused."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{self.folder} has no config.json, so it is not a checkpoint folder"
            )
        config = read_json(path)
        if config.get("quantization_config"):
            raise CheckpointError(
                f"{self.folder} is quantised (config.json has quantization_config), which is not "
                "supported; use the original float checkpoint"
            )
        return config

    @cached_property
    def family(self) -> Family:
        """The family that can host it."""
        return find_family(self.config)

    @cached_property
    def generation(self) -> dict[str, Any]:
        """Its generation_config.json, if it has one."""
        path = self.folder / "generation_config.json"
        return read_json(path) if path.is_file() else {}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer, None when it has no tokenizer files; none of their code is run.

        `tokenizer.json` describes a tokenizer completely, so its class is not looked up: the
        classes that LLaDA and Dream name are remote code. Dream ships only vocab.json and
        merges.txt, in Qwen2's byte-level format.
        """
        folder = self.folder
        present = {name for name in (COMPLETE, *OTHER) if (folder / name).is_file()}
        if not present:
            return None
        if COMPLETE not in present and not present.issuperset(BYTE_LEVEL):
            listed = ", ".join(name for name in OTHER if name in present)
            raise CheckpointError(
                f"{folder} has {listed} but no complete tokenizer; needed: {COMPLETE}, or "
                f"{' and '.join(BYTE_LEVEL)}"
            )
        kind = PreTrainedTokenizerFast if COMPLETE in present else Qwen2Tokenizer
        try:
            return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise CheckpointError(
                f"the tokenizer files in {folder} cannot be read: {error}"
            ) from error

    @cached_property
    def network(self) -> NetworkConfig:
        """The shape of its network."""
        return self.family.read_network(self.config)

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Its tensors, from the headers of its files."""
        return list_tensors(self.folder)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that its config.json names, else its first tensor's."""
        # transformers 5 calls the key `dtype`.
        name = self.config.get("dtype") or self.config.get("torch_dtype")
        if name is None:
            return next(stream_tensors(self.stored, [min(self.stored)]))[1].dtype
        try:
            return parse_dtype(name)
        except ValueError as error:
            raise CheckpointError(f"config.json: {error}") from None

    @cached_property
    def spec(self) -> ModelSpec:
        """Its special tokens, limits and attention."""
        family, eos = self.family, self._eos()
        return ModelSpec(
            vocab_size=self.network.vocab_size,
            max_length=family.read_max_length(self.config),
            mask_token_id=self._mask(),
            eos_token_ids=eos,
            # Padding is hidden from attention, so any token will do where none is named.
            pad_token_id=(*_ids("pad_token_id", self.generation, self.config), *eos)[0],
            logit_shift=family.logit_shift,
            attention=family.attention,
            block_length=family.read_block_length(self.config),
        )

    def _mask(self) -> int:
        """Returns the id of the mask token: the configuration's, else the tokenizer's."""
        family, spellings = self.family, " or ".join(self.family.mask_tokens)
        named = _ids("mask_token_id", self.config)
        token = named[0] if named else _find_token(self.tokenizer, family.mask_tokens)
        if token is not None:
            return token
        lack = f" and its tokenizer has no {spellings}"
        if self.tokenizer is None:
            lack = f", and there is no tokenizer to look up {spellings} in"
        raise CheckpointError(
            f"config.json of {family.architecture} has no mask_token_id{lack}; add mask_token_id "
            "to config.json"
        )

    def _eos(self) -> tuple[int, ...]:
        """Returns the ids that end an answer; the first of them fills a finished row."""
        eos = list(_ids("eos_token_id", self.generation, self.config))
        if self.tokenizer is not None:
            turn_end = _find_token(self.tokenizer, self.family.turn_ends)
            eos += [t for t in (self.tokenizer.eos_token_id, turn_end) if t is not None]
        if not eos:
            raise CheckpointError(
                "no eos_token_id in config.json, generation_config.json or the tokenizer; add it "
                "to config.json"
            )
        return tuple(dict.fromkeys(eos))


def find_folder(name: str, revision: str | None = None) -> Path:
    """Returns the folder of "tiny", of a path, or of a hub id, which is downloaded."""
    folder = EMBEDDED if name == "tiny" else Path(name).expanduser()
    if name == "tiny" and not folder.is_dir():
        raise CheckpointError(f"the embedded model is missing: there is no folder {folder}")
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that holds it")
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for hub ids, and {name!r} is a folder")
        return folder
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is not an existing folder, nor a hub id (owner/name), nor 'tiny'"
        )
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    """Returns the local copy of a hub repository, checking its family before its weights come."""
    try:
        config = Path(hf_hub_download(name, "config.json", revision=revision))
        find_family(Checkpoint(str(config.parent)).config)
        return Path(snapshot_download(name, revision=revision, allow_patterns=DOWNLOADED))
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # the hub's errors: no network, no such id, not allowed
        raise CheckpointError(
            f"there is no folder {name!r}, and downloading it from the hub failed: {error}. "
            "Without a network, download the folder elsewhere and give its path"
        ) from error


def _find_token(
    tokenizer: PreTrainedTokenizerBase | None, spellings: tuple[str, ...]
) -> int | None:
    """Returns the id of the first spelling that the vocabulary has; never the unknown token's."""
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    return next((vocabulary[text] for text in spellings if text in vocabulary), None)


def _ids(key: str, *sources: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the token ids of a key, those of the first source first."""
    ids: list[Any] = []
    for source in sources:
        value = source.get(key)
        ids += value if isinstance(value, list) else [] if value is None else [value]
    wrong = [token for token in ids if isinstance(token, bool) or not isinstance(token, int)]
    if wrong:
        raise CheckpointError(f"{key} is {wrong[0]!r}; expected a token id or a list of them")
    return tuple(dict.fromkeys(ids))
