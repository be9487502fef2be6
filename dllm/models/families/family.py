"""One checkpoint family: how its config.json is read, its tensor names, how it decodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dllm.models.config import AttentionKind, CheckpointError, NetworkConfig


@dataclass(frozen=True)
class Fields:
    """The keys of one config.json, read by a family, with errors that say what is allowed."""

    config: Mapping[str, Any]
    reader: str  # architecture of the family

    def has(self, key: str) -> bool:
        """Whether the key is there with a value."""
        return self.config.get(key) is not None

    def integer(self, key: str) -> int:
        """Returns a positive integer."""
        value = self.require(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, value, "a positive integer")
        return value

    def number(self, key: str) -> float:
        """Returns a positive number."""
        value = self.require(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.error(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Returns true or false; a missing key is an error unless there is a default."""
        if default is not None and not self.has(key):
            return default
        value = self.require(key)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def rope_theta(self) -> float:
        """Returns the base of the rotary frequencies, refusing every scaled variant.

        transformers 5 writes it into `rope_parameters`, earlier versions at the top level.
        """
        for key in ("rope_scaling", "rope_parameters"):
            rope = self.config.get(key) or {}
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind != "default":
                raise self.error(f"{key}.rope_type", kind, '"default"')
        nested = self.config.get("rope_parameters") or {}
        if not self.has("rope_theta") and "rope_theta" in nested:
            return Fields(nested, self.reader).number("rope_theta")
        return self.number("rope_theta")

    def only(self, allowed: Mapping[str, Any]) -> None:
        """Refuses a key that is set to anything but its allowed value; null counts as unset."""
        for key, expected in allowed.items():
            value = self.config.get(key)
            if value is not None and value != expected:
                raise self.error(key, value, f"{expected!r} or the key left out")

    def require(self, key: str) -> Any:
        """Returns the value of a key that must be there."""
        if not self.has(key):
            raise CheckpointError(f"config.json of {self.reader} has no {key!r}")
        return self.config[key]

    def error(self, key: str, value: object, allowed: str) -> CheckpointError:
        """Returns the error for a value that the family does not support."""
        return CheckpointError(
            f"config.json of {self.reader} has {key}={value!r}; supported: {allowed}"
        )


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
    network_of: Callable[[Fields], NetworkConfig]
    names: TensorNames
    mask_tokens: tuple[str, ...]  # spellings of the mask token, for a config without mask_token_id
    max_length_key: str = "max_position_embeddings"
    logit_shift: Literal[0, 1] = 0
    attention: AttentionKind = "full"
    block_length_key: str | None = None  # of block-causal families
    turn_ends: tuple[str, ...] = ()  # tokens that end an answer besides eos_token_id

    def read_network(self, config: Mapping[str, Any]) -> NetworkConfig:
        """Returns the shape and switches of the network; CheckpointError for unsupported ones."""
        return self.network_of(Fields(config, self.architecture))

    def read_max_length(self, config: Mapping[str, Any]) -> int:
        """Returns the most tokens that a canvas may have."""
        return Fields(config, self.architecture).integer(self.max_length_key)

    def read_block_length(self, config: Mapping[str, Any]) -> int | None:
        """Returns the trained block of a block-causal family."""
        key = self.block_length_key
        return None if key is None else Fields(config, self.architecture).integer(key)
