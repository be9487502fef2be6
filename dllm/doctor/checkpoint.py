"""A checkpoint as the doctor reads it: part by part, no weight loaded, nothing downloaded."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from dllm.models.config import CheckpointError
from dllm.models.loading.checkpoint import HUB_ID, Checkpoint, find_folder
from dllm.models.loading.weights import empty_network
from dllm.models.transformer import Transformer

MOST_LAYERS = 10_000  # beyond that a number in config.json is a mistake that takes hours to build


class LocalCheckpoint(Checkpoint):
    """A checkpoint that is on this machine, and its network without memory."""

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
