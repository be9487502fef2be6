"""A checkpoint as the doctor reads it: part by part, no weight loaded, nothing downloaded."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedTokenizerBase

from dllm.models.config import CheckpointError, NetworkConfig
from dllm.models.families import Family, find_family
from dllm.models.loading.checkpoint import (
    StoredTensor,
    list_tensors,
    read_config,
    read_optional,
    stored_dtype,
)
from dllm.models.loading.hub import find_folder
from dllm.models.loading.load import own_dtype
from dllm.models.loading.tokenizer import load_tokenizer
from dllm.models.loading.weights import empty_network
from dllm.models.transformer import Transformer

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
MOST_LAYERS = 10_000  # beyond that a number in config.json is a mistake that takes hours to build


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read as far as it goes; properties raise what is wrong with it."""

    name: str  # "tiny", a folder or a hub id

    @cached_property
    def folder(self) -> Path:
        """Its folder, or the copy of a hub id that is there already; nothing is downloaded."""
        given = Path(self.name).expanduser()
        if self.name == "tiny" or given.exists() or not HUB_ID.fullmatch(self.name):
            return find_folder(self.name)
        cached = try_to_load_from_cache(self.name, "config.json")
        if not isinstance(cached, str):
            raise CheckpointError(
                f"there is no folder {self.name!r}, and no hub repository of that name was "
                "downloaded yet, which loading it does"
            )
        return Path(cached).parent

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return read_config(self.folder)

    @cached_property
    def family(self) -> Family:
        """The family that can host it."""
        return find_family(self.config)

    @cached_property
    def network(self) -> NetworkConfig:
        """The shape of its network."""
        return self.family.read_network(self.config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer, if it has one."""
        return load_tokenizer(self.folder)

    @cached_property
    def generation(self) -> dict[str, Any]:
        """Its generation_config.json, if it has one."""
        return read_optional(self.folder / "generation_config.json")

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Its tensors, from the headers of its files."""
        return list_tensors(self.folder)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that it is loaded in unless another is asked for."""
        return own_dtype(self.config) or stored_dtype(self.stored)

    @cached_property
    def empty(self) -> Transformer:
        """Its network without memory."""
        if self.network.num_layers > MOST_LAYERS:
            raise CheckpointError(f"config.json asks for {self.network.num_layers} layers")
        return empty_network(self.network)

    @property
    def num_parameters(self) -> int:
        """How many numbers its network holds, a tied head counted once."""
        return sum(math.prod(weight.shape) for weight in self.empty.parameters())

    @property
    def weight_bytes(self) -> int:
        """The memory of its weights."""
        return self.num_parameters * self.dtype.itemsize
