"""What a model is to the rest: the shape and switches of its network, its special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from dllm.models.fields import (
    LARGEST,
    MOST_LAYERS,
    NO_LIMIT,
    TINIEST,
    Allowed,
    Numbers,
    check_fields,
)
from dllm.models.yarn import YarnConfig

# masks_last: causal over an order in which masks stand behind all tokens; a token sees those up to
# itself, a mask all tokens and the masks up to itself.
# encoder_decoder: committed tokens see their block and those before; an open column its block and
# what was made of the tokens before it.
# causal_context: causal up to the block at hand, whose columns see all before it and each other.
AttentionKind = Literal[
    "full", "block_causal", "causal", "masks_last", "causal_context", "encoder_decoder"
]
BlocksFrom = Literal["zero", "prompt"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or hosted.

    Its message may quote names and texts of foreign files, so it is made safe to print.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Returns a text in which all that a terminal might obey or cannot encode is escaped."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text
    )


_FLAG = (False, True)
_SIZE = Numbers(1, 2**24)
NETWORK_FIELDS: Allowed = {
    "vocab_size": _SIZE,
    "hidden_size": Numbers(1, 2**20),
    "intermediate_size": _SIZE,
    "num_layers": Numbers(1, MOST_LAYERS),
    "num_heads": Numbers(1, 2**14),
    "num_kv_heads": Numbers(1, 2**14),
    "head_dim": Numbers(1, 2**14),
    "rope_theta": Numbers(1, LARGEST, whole=False),
    "rms_norm_eps": Numbers(TINIEST, 1, whole=False),
    "rope_in_float32": _FLAG,
    "norm_multiply_first": _FLAG,
    "rotary_dim": Numbers(1, 2**14, optional=True),
    "qkv_bias": _FLAG,
    "qk_norm": _FLAG,
    "fused_qkv": _FLAG,
    "fused_gate_up": _FLAG,
    "tie_embeddings": _FLAG,
    "logits_in_float32": _FLAG,
    "experts": None,
    "decoder": None,
    "yarn": None,
}
DECODER_FIELDS: Allowed = {"num_layers": Numbers(1, MOST_LAYERS), "shared": _FLAG}
EXPERTS_FIELDS: Allowed = {
    "num_experts": Numbers(1, 2**14),
    "num_active": Numbers(1, 2**14),
    "intermediate_size": _SIZE,
    "shared_size": Numbers(1, 2**24, optional=True),
    "num_dense_layers": Numbers(0, MOST_LAYERS),
    "score": ("softmax", "sigmoid"),
    "num_groups": Numbers(1, 2**14),
    "num_active_groups": Numbers(1, 2**14),
    "bias": ("none", "choice", "weights"),
    "normalise": _FLAG,
    "scaling": Numbers(TINIEST, LARGEST, whole=False),
    "router_in_float32": _FLAG,
    "sum_in_float32": _FLAG,
}
SPEC_FIELDS: Allowed = {
    "vocab_size": _SIZE,
    "max_length": Numbers(1, NO_LIMIT),
    "mask_token_id": None,
    "eos_token_ids": None,
    "pad_token_id": None,
    "logit_shift": (0, 1),
    "attention": get_args(AttentionKind),
    "block_length": Numbers(1, NO_LIMIT, optional=True),
    "blocks_from": get_args(BlocksFrom),
    "expand_token_id": None,
}


@dataclass(frozen=True)
class ExpertsConfig:
    """The mixture of experts of a network: how they are chosen, weighed and added up."""

    num_experts: int
    num_active: int  # experts that a token goes through
    intermediate_size: int  # of one expert
    shared_size: int | None = None  # of what every token goes through besides; None: nothing
    num_dense_layers: int = 0  # the first layers have one feed-forward layer instead
    score: Literal["softmax", "sigmoid"] = "softmax"  # in float32, of the router's product
    num_groups: int = 1  # a token's experts are of its `num_active_groups` best groups of experts,
    num_active_groups: int = 1  # by the sum of the two largest scores in each
    bias: Literal["none", "choice", "weights"] = "none"  # added to scores for the choice, or always
    normalise: bool = True  # the weights of a token's experts are divided by their sum
    scaling: float = 1.0  # then multiplied by this
    # Two roundings differ between families and decide bit equality in bfloat16.
    router_in_float32: bool = False  # the router's product, not only its scores
    sum_in_float32: bool = False  # outputs are weighed and added in float32, else one after another

    def __post_init__(self) -> None:
        check_fields(self, EXPERTS_FIELDS)
        whole, rest = divmod(self.num_experts, self.num_groups)
        if rest or (self.num_groups > 1 and whole < 2):
            raise ValueError(
                f"num_experts={self.num_experts} does not make num_groups={self.num_groups} equal "
                "groups of at least two experts"
            )
        if self.num_active_groups > self.num_groups:
            raise ValueError(
                f"num_active_groups={self.num_active_groups} is more than "
                f"num_groups={self.num_groups}"
            )
        if self.num_active > whole * self.num_active_groups:
            raise ValueError(
                f"num_active={self.num_active} experts of a token are more than the "
                f"{whole * self.num_active_groups} to choose from"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder of a network of two stacks, whose encoder the network's layers are."""

    num_layers: int
    # Its layers are the encoder's last, each over the keys of that layer; else they are its own,
    # each over keys that it makes of the encoder's output.
    shared: bool

    def __post_init__(self) -> None:
        check_fields(self, DECODER_FIELDS)


@dataclass(frozen=True)
class NetworkConfig:
    """The shape and numerical switches of the one transformer that hosts every family.

    A family (`dllm/models/families/`) reads it from the checkpoint's own `config.json`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    # Two roundings differ between families and decide bit equality in bfloat16.
    rope_in_float32: bool = False  # q and k are rotated in float32 and cast back (LLaDA-8B)
    norm_multiply_first: bool = False  # the norm weight is applied before the cast (SDAR's kernel)
    rotary_dim: int | None = None  # the first `rotary_dim` elements of a head rotate; None: all
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm over each head of q and k, before RoPE
    fused_qkv: bool = False  # one product gives queries, keys and values
    fused_gate_up: bool = False  # one product gives both halves of the gated layer
    tie_embeddings: bool = False
    logits_in_float32: bool = False
    experts: ExpertsConfig | None = None  # None: every layer has one feed-forward layer
    decoder: DecoderConfig | None = None  # None: one stack
    yarn: YarnConfig | None = None  # None: frequencies are those of rope_theta

    def __post_init__(self) -> None:
        check_fields(self, NETWORK_FIELDS)
        for name, kind in (("experts", ExpertsConfig), ("yarn", YarnConfig)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"{name}={value!r} must be a {kind.__name__} or None")
        if self.experts is not None and self.experts.num_dense_layers >= self.num_layers:
            raise ValueError(
                f"num_dense_layers={self.experts.num_dense_layers} leaves no layer of "
                f"num_layers={self.num_layers} with experts"
            )
        if self.decoder is not None:
            self._check_decoder(self.decoder)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        rotated = self.rotary_dim or self.head_dim
        if rotated % 2 or rotated > self.head_dim:
            raise ValueError(
                f"rotary_dim={rotated} must be even and at most head_dim={self.head_dim}"
            )

    def _check_decoder(self, decoder: Any) -> None:
        if not isinstance(decoder, DecoderConfig):
            raise ValueError(f"decoder={decoder!r} must be a DecoderConfig or None")
        if self.experts is not None:
            raise ValueError("a network of an encoder and a decoder has no experts")
        if decoder.shared and decoder.num_layers > self.num_layers:
            raise ValueError(
                f"a decoder of {decoder.num_layers} layers cannot be the last of "
                f"num_layers={self.num_layers}"
            )

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """Returns the experts of a layer, None for one with a single feed-forward layer."""
        dense = self.experts is None or layer < self.experts.num_dense_layers
        return None if dense else self.experts


@dataclass(frozen=True)
class ModelSpec:
    """What decoding must know of a model: special tokens, limits, attention, alignment."""

    vocab_size: int
    max_length: int  # tokens, prompt and answer together
    mask_token_id: int
    eos_token_ids: tuple[int, ...]  # the first is the one that fills a finished row
    pad_token_id: int
    logit_shift: Literal[0, 1] = 0  # 1: the logits of column p predict column p + 1
    attention: AttentionKind = "full"
    # Trained block of block-causal models; of others what the authors take.
    block_length: int | None = None
    # Where a block-causal model's blocks are counted from: column 0, or the end of the prompt, of
    # which the first block is then the short one.
    blocks_from: BlocksFrom = "zero"
    expand_token_id: int | None = None  # stands for two masks (DreamOn)

    def __post_init__(self) -> None:
        check_fields(self, SPEC_FIELDS)
        if self.attention in ("block_causal", "causal_context") and not self.block_length:
            raise ValueError(f"{self.attention} attention needs a block_length in config.json")
        if self.blocks_from == "prompt" and self.attention != "block_causal":
            raise ValueError(
                f"blocks_from='prompt' is of block_causal attention, not of {self.attention}"
            )
        ends = self.eos_token_ids
        if isinstance(ends, str) or not isinstance(ends, Sequence):
            raise ValueError(f"eos_token_ids={ends!r} must be a tuple of token ids, such as (2,)")
        object.__setattr__(self, "eos_token_ids", tuple(ends))
        self.check_token_ids("mask_token_id", [self.mask_token_id], mask=True)
        self.check_token_ids("eos_token_id", self.eos_token_ids)
        self.check_token_ids("pad_token_id", [self.pad_token_id])
        if self.expand_token_id is not None:
            self.check_token_ids("expand_token_id", [self.expand_token_id])

    def check_token_ids(self, name: str, ids: Iterable[Any], *, mask: bool = False) -> None:
        """Raises ValueError unless all ids are of the vocabulary; `mask` allows the mask token."""
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, Integral):
                raise ValueError(f"{name}={token!r} is no token id: give a whole number")
            if not 0 <= token < self.vocab_size:  # type: ignore[operator]
                raise ValueError(
                    f"{name}={token} is outside the vocabulary of {self.vocab_size}: token ids go "
                    f"from 0 to {self.vocab_size - 1}"
                )
            if not mask and token == self.mask_token_id:
                raise ValueError(
                    f"{name}={token} is the mask token, which marks open slots and nothing else: "
                    "give another id, or correct mask_token_id"
                )


@dataclass(frozen=True)
class UniformSpec(ModelSpec):
    """The same of a model of the uniform process, in which noise is a random token and no mask.

    `mask_token_id` is then a flag: it marks columns that wait, stands right behind the last token
    of the vocabulary, and counts among `vocab_size`. The model is never fed it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_token_id != self.vocab_size - 1:
            raise ValueError(
                f"mask_token_id={self.mask_token_id} must stand behind the last token of the "
                f"uniform process: give {self.vocab_size - 1}, or another vocab_size"
            )
        if self.block_length is None:
            raise ValueError("the uniform process needs a block_length: a canvas at a time is fed")
