"""Fills a network that has no memory yet with a checkpoint's tensors, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dllm.models.config import CheckpointError, NetworkConfig
from dllm.models.families.family import TensorNames
from dllm.models.loading.files import StoredTensor, first_few, stream_tensors
from dllm.models.loading.placement import Devices, device_of
from dllm.models.transformer import Transformer

# Tables of rotary frequencies, which `Transformer` computes; some checkpoints store them.
COMPUTED = "rotary_emb.inv_freq"


def empty_network(config: NetworkConfig) -> Transformer:
    """Returns a network whose parameters have shapes but no memory.

    Not accelerate's init_empty_weights, which unties a tied head.
    """
    with torch.device("meta"):
        return Transformer(config).eval().requires_grad_(False)


@dataclass(frozen=True)
class Weights:
    """The tensors that a checkpoint stores for a network."""

    names: TensorNames
    stored: Mapping[str, StoredTensor]

    def check(self, network: Transformer) -> None:
        """Raises CheckpointError unless the stored tensors are exactly those of the network."""
        wanted = {self.names.of(name): w.shape for name, w in network.named_parameters()}
        shapes = {name: tensor.shape for name, tensor in self.stored.items()}
        tied = {self._head} if network.config.tie_embeddings else set()
        missing = sorted(wanted.keys() - shapes.keys())
        if missing:
            raise CheckpointError(f"{len(missing)} tensors are missing: {_list(missing, wanted)}")
        others = shapes.keys() - wanted.keys() - tied
        extra = sorted(name for name in others if not name.endswith(COMPUTED))
        if extra:
            raise CheckpointError(
                f"{len(extra)} tensors are not of this architecture: {_list(extra, shapes)}"
            )
        wrong = [name for name, shape in wanted.items() if shapes[name] != tuple(shape)]
        if wrong:
            raise CheckpointError(
                f"{len(wrong)} tensors have other shapes than config.json says: "
                f"{_list(wrong, shapes)}; expected {_list(wrong, wanted)}"
            )
        if tied & shapes.keys():
            self._check_tied_head()

    def fill(self, network: Transformer, dtype: torch.dtype, devices: Devices) -> None:
        """Puts every tensor into its place in the network."""
        parameters = {self.names.of(name): name for name, _ in network.named_parameters()}
        for name, tensor in stream_tensors(self.stored, parameters):
            module, _, kind = parameters[name].rpartition(".")
            device = device_of(parameters[name], devices)
            # A copy even where nothing changes: what was read is a view of the file's pages.
            weight = nn.Parameter(tensor.to(device, dtype, copy=True), requires_grad=False)
            setattr(network.get_submodule(module), kind, weight)
        if network.config.tie_embeddings:
            network.head.weight = network.embedding.weight

    @property
    def _head(self) -> str:
        return self.names.of("head.weight")

    def _check_tied_head(self) -> None:
        """Refuses a head that is stored beside a tied embedding and differs from it."""
        pair = (self._head, self.names.of("embedding.weight"))
        (_, first), (_, second) = stream_tensors(self.stored, pair)
        if first.shape != second.shape or not torch.equal(first, second):
            raise CheckpointError(
                f"config.json ties the head to the embedding, but {self._head} is stored and "
                "differs from it; untie them in config.json to use the stored head"
            )


def _list(names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    return first_few(f"{name} {list(shapes[name])}" for name in names)
