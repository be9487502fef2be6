"""The layers of a network whose weights are still on their way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from dllm.models.layers import Block
from dllm.models.transformer import Transformer


@dataclass(frozen=True)
class Waiting:
    """The layers of a network, and how many tensors of each are still to come."""

    layers: Mapping[str, nn.Module]
    waiting: Counter[str]

    @staticmethod
    def of(network: Transformer, names: Collection[str]) -> Waiting:
        """Returns those of a network that gets the named parameters, some of them in parts."""
        found = {name: part for name, part in network.named_modules() if isinstance(part, Block)}
        layers = Waiting(found, Counter())
        layers.waiting.update(layer for name in names if (layer := layers._name(name)))
        return layers

    def filled(self, parameter: str) -> nn.Module | None:
        """Notes that a tensor came; returns its layer if that was the last one of it."""
        name = self._name(parameter)
        self.waiting[name] -= 1
        return None if self.waiting[name] or not name else self.layers[name]

    def _name(self, parameter: str) -> str:
        parts = parameter.split(".")
        above = (".".join(parts[:count]) for count in range(len(parts)))
        return next((name for name in above if name in self.layers), "")
