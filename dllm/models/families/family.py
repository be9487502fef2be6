"""One checkpoint family: how its config.json is read, its tensor names, how it decodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dllm.models.config import AttentionKind, BlocksFrom, CheckpointError, NetworkConfig, printable
from dllm.models.fields import LARGEST, NO_LIMIT, TINIEST, Numbers

logger = logging.getLogger(__name__)


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
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= NO_LIMIT:
            raise self.error(key, value, f"a positive integer up to {NO_LIMIT}")
        return value

    def number(self, key: str) -> float:
        """Returns a positive number, which is finite."""
        value = self.require(key)
        allowed = Numbers(TINIEST, LARGEST, whole=False)
        if value not in allowed:
            raise self.error(key, value, f"a positive number up to {LARGEST:g}")
        return float(value)

    def count(self, key: str) -> int:
        """Returns a positive integer or zero, which a missing key is."""
        value = self.config.get(key)
        return 0 if value is None or (type(value) is int and value == 0) else self.integer(key)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Returns true or false; a missing key is an error unless there is a default."""
        if default is not None and not self.has(key):
            return default
        value = self.require(key)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def rotary_dim(self, head_dim: int) -> int:
        """Returns how many elements of a head are rotated, which one of two keys must say."""
        places: dict[str, float] = {}
        if self.has("rotary_dim"):
            places["rotary_dim"] = self.integer("rotary_dim")
        if self.has("partial_rotary_factor"):
            places["head_dim * partial_rotary_factor"] = head_dim * self.partial_rotary_factor()
        if not places:
            self.require("partial_rotary_factor")
        self._check_agreement(places)
        width = next(iter(places.values()))
        if width % 2 or width > head_dim:
            allowed = f"an even number of the {head_dim} elements of a head"
            raise self.error(*next(iter(places.items())), allowed)
        return int(width)

    def partial_rotary_factor(self) -> float:
        """Returns the part of a head that is rotated."""
        part = self.number("partial_rotary_factor")
        if part > 1:
            raise self.error("partial_rotary_factor", part, "a number up to 1")
        return part

    def rope_theta(self, part: float = 1) -> float:
        """Returns the base of the rotary frequencies, refusing every scaled variant.

        `part` is what `partial_rotary_factor` may be, if it is there. transformers 5 writes the
        base into `rope_parameters`, earlier versions at the top level; where several name it, they
        must agree.
        """
        places: list[tuple[str, Fields]] = [("", self)] if self.has("rope_theta") else []
        for key in ("rope_scaling", "rope_parameters"):
            rope = self.config.get(key)
            if rope is None:
                continue
            if not isinstance(rope, Mapping):
                raise self.error(key, rope, "an object or null")
            self._check_rope(key, rope, part)
            if rope.get("rope_theta") is not None:
                places.append((f"{key}.", Fields(rope, f"{self.reader} in {key}")))
        own = {"partial_rotary_factor": self.config.get("partial_rotary_factor")}
        self._check_rope("", own, part)
        if not places:
            self.require("rope_theta")
        found = {f"{place}rope_theta": fields.number("rope_theta") for place, fields in places}
        self._check_agreement(found)
        return next(iter(found.values()))

    def _check_agreement(self, found: Mapping[str, Any]) -> None:
        """Refuses one fact that several keys state differently."""
        if len(set(found.values())) > 1:
            listed = " and ".join(f"{name}={value!r}" for name, value in found.items())
            raise CheckpointError(
                f"config.json of {self.reader} has {listed}, which state one fact: correct one of "
                "them, or leave it out"
            )

    def _check_rope(self, key: str, rope: Mapping[str, Any], allowed: float) -> None:
        """Refuses rotary embeddings that are not the plain ones, such as scaled or partial."""
        kinds = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
        for kind in kinds:
            if kind != "default":
                raise self.error(f"{key}.rope_type", kind, '"default"')
        part = rope.get("partial_rotary_factor")
        if part is not None and (isinstance(part, bool) or part != allowed):
            raise self.error("partial_rotary_factor", part, f"{allowed:g} or the key left out")
        for name, inner in rope.items():
            if isinstance(inner, Mapping):  # other bases for other layers
                raise self.error(f"{key}.{name}", inner, "one rotary base for all layers")

    def only(self, allowed: Mapping[str, Any]) -> None:
        """Refuses a key that is set to anything but its allowed value; null counts as unset."""
        for key, expected in allowed.items():
            value = self.config.get(key)
            if value is not None and (type(value) is not type(expected) or value != expected):
                raise self.error(key, value, f"{expected!r} or the key left out")

    def warn_of_others(self, names: Mapping[str, str]) -> None:
        """Warns of keys of other families that say something else than this family's own."""
        for own, other in names.items():
            if self.has(own) and self.has(other) and self.config[own] != self.config[other]:
                text = (
                    f"config.json of {self.reader} has {own}={self.config[own]!r} and {other}="
                    f"{self.config[other]!r}: this family reads {own}; correct or remove the other"
                )
                logger.warning("%s", printable(text))

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


Where = tuple[int | slice, ...]  # index of a part of a parameter; (): all of it


@dataclass(frozen=True)
class Piece:
    """A tensor of a checkpoint, and where in a parameter it lies."""

    name: str
    where: Where = ()


@dataclass(frozen=True)
class TensorNames:
    """The names that a family's checkpoints give to the modules of `Transformer`."""

    embedding: str
    norm: str
    head: str
    layer: str  # with {layer} in the place of the layer's number
    # Module of a `Block` -> module of a checkpoint layer; of the experts' gate, up and down
    # projections, with {expert} in the place of the expert's number.
    parts: Mapping[str, str]
    # Parameter of a `Block` -> tensor of a checkpoint layer, where the two end differently.
    others: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()  # beginnings and ends of tensors of parts that are not hosted

    def pieces(self, parameter: str, shape: Sequence[int]) -> Iterator[Piece]:
        """Yields the checkpoint's tensors of a parameter: one, or those of each expert."""
        module, _, part = parameter.rpartition(".")
        if not module.endswith(".experts"):
            yield Piece(self.of(parameter))
            return
        inner = shape[1] // 2
        halves = {"gate": slice(0, inner), "up": slice(inner, None)}
        rows = halves if part == "gate_up" else {part: slice(None)}
        for expert in range(shape[0]):
            for name, where in rows.items():
                named = self.of(f"{module}.{name}.weight").format(expert=expert)
                yield Piece(named, (expert, where))

    def first_name(self, stored: str, config: NetworkConfig) -> str:
        """Returns the name under which `of` knows a stored tensor; tied ones have several."""
        head = self.of("head.weight")
        return self.of("embedding.weight") if config.tie_embeddings and stored == head else stored

    def of(self, parameter: str) -> str:
        """Returns the checkpoint's tensor name of a parameter of `Transformer`."""
        module, _, kind = parameter.rpartition(".")  # kind: weight or bias
        if not module.startswith("blocks."):
            return f"{getattr(self, module)}.{kind}"
        _, layer, part = module.split(".", 2)
        own = self.others.get(f"{part}.{kind}") or f"{self.parts[part]}.{kind}"
        return f"{self.layer.format(layer=layer)}.{own}"


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
    # Trained, or the authors' window, where a config.json does not have that key.
    block_length: int | None = None
    turn_ends: tuple[str, ...] = ()  # tokens that end an answer besides eos_token_id
    expand_tokens: tuple[str, ...] = ()  # spellings of a token that stands for two masks
    # Of a nested config.json: its keys side by side; and the name of the checkpoint whose
    # config.json it needs besides, None where it needs none.
    flattened: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    base_of: Callable[[Mapping[str, Any]], str | None] | None = None
    # Block-causal where config.json has the block's key or `dllm.load` is told it.
    block_optional: bool = False
    block_words: tuple[str, ...] = ()  # in a checkpoint's name: it was trained on blocks
    blocks_from: BlocksFrom = "zero"  # of block-causal ones: where blocks are counted from

    def read_network(self, config: Mapping[str, Any]) -> NetworkConfig:
        """Returns the shape and switches of the network; CheckpointError for unsupported ones."""
        try:
            return self.network_of(self._fields(config))
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"config.json of {self.architecture}: {error}") from error

    def read_max_length(self, config: Mapping[str, Any]) -> int:
        """Returns the most tokens that a canvas may have."""
        return self._fields(config).integer(self.max_length_key)

    def read_block_length(self, config: Mapping[str, Any]) -> int | None:
        """Returns the trained block of a block-causal family, else the authors' window, if any."""
        key, fields = self.block_length_key, self._fields(config)
        may_lack = self.block_optional or self.block_length is not None
        if key is None or (may_lack and not fields.has(key)):
            return self.block_length
        return fields.integer(key)

    def read_attention(self, config: Mapping[str, Any]) -> AttentionKind:
        """Returns which columns see which, as config.json or the family says."""
        if self.block_optional and self.read_block_length(config) is not None:
            return "block_causal"
        return self.attention

    def with_attention(
        self, config: Mapping[str, Any], attention: str, block_length: int | None
    ) -> dict[str, Any]:
        """Returns a config.json that says the attention that was asked for.

        Raises ValueError where the family does not leave it open, and for a block without its
        length or a length without blocks.
        """
        asked, key = f"attention={attention!r}", self.block_length_key
        if not self.block_optional or key is None:
            raise ValueError(
                f"{asked}: checkpoints of {self.architecture} are {self.attention!r} and leave no "
                "choice; leave attention out"
            )
        if attention == self.attention and block_length is None:
            return {name: value for name, value in config.items() if name != key}
        if attention != "block_causal":
            raise ValueError(
                f"{asked} with block_length={block_length}: of {self.architecture} it can be "
                f"{self.attention!r}, without a block_length, or 'block_causal'"
            )
        said = config.get(key) if block_length is None else block_length
        if said is None:
            raise ValueError(
                f"{asked} needs the block that the checkpoint was trained on, which its "
                "config.json does not say: give block_length, or attention='block_causal:32'"
            )
        return {**config, key: said}

    def _fields(self, config: Mapping[str, Any]) -> Fields:
        return Fields(self.flattened(config), self.architecture)
