"""What one checkpoint family says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dllm.models.config import AttentionKind, NetworkConfig
from dllm.models.families.fields import Fields


@dataclass(frozen=True)
class TensorNames:
    """The names that a family's checkpoints give to the modules of `Transformer`."""

    embedding: str
    norm: str
    head: str
    layer: str  # with {layer} in the place of the layer's number
    parts: Mapping[str, str]  # module of a `Block` -> module of a checkpoint layer

    def of(self, parameter: str) -> str:
        """Returns the checkpoint's tensor name of a parameter of `Transformer`."""
        module, _, kind = parameter.rpartition(".")  # kind: weight or bias
        if not module.startswith("blocks."):
            return f"{getattr(self, module)}.{kind}"
        _, layer, part = module.split(".", 2)
        return f"{self.layer.format(layer=layer)}.{self.parts[part]}.{kind}"


@dataclass(frozen=True)
class Family:
    """A family: how to read its configuration, its tensor names, and how it decodes."""

    architecture: str  # `architectures[0]` of its config.json
    read_network: Callable[[Mapping[str, Any]], NetworkConfig]
    names: TensorNames
    mask_tokens: tuple[str, ...]  # spellings of the mask token, for a config without mask_token_id
    max_length_key: str = "max_position_embeddings"
    logit_shift: Literal[0, 1] = 0
    attention: AttentionKind = "full"
    block_length_key: str | None = None  # of block-causal families
    turn_ends: tuple[str, ...] = ()  # tokens that end an answer besides eos_token_id

    def read_max_length(self, config: Mapping[str, Any]) -> int:
        """Returns the most tokens that a canvas may have."""
        return Fields(config, self.architecture).integer(self.max_length_key)

    def read_block_length(self, config: Mapping[str, Any]) -> int | None:
        """Returns the trained block of a block-causal family."""
        if self.block_length_key is None:
            return None
        return Fields(config, self.architecture).integer(self.block_length_key)
