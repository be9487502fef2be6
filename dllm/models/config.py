"""What a model is to the rest: its network's shape, its special tokens, the price of a pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

from dllm.state.plan import PassShape

# masks_last: causal over an order in which masks stand behind all tokens; a token sees those up to
# itself, a mask all tokens and the masks up to itself.
AttentionKind = Literal["full", "block_causal", "causal", "masks_last"]

_FLOAT32 = 4  # bytes


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


@dataclass(frozen=True)
class Numbers:
    """The numbers that a field may be; NaN, infinity, booleans and texts are none of them."""

    least: float
    most: float
    whole: bool = True
    optional: bool = False

    def __contains__(self, value: object) -> bool:
        if value is None:
            return self.optional
        kind = Integral if self.whole else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        return self.least <= value <= self.most  # type: ignore[operator] # false for NaN

    def __str__(self) -> str:
        kind = "whole number" if self.whole else "number"
        or_none = ", or None" if self.optional else ""
        return f"a {kind} from {self.least} to {self.most}{or_none}"


NO_LIMIT = 2**31 - 1  # tokens of a model that has no limit
MOST_LAYERS = 1000  # more are a mistake that takes minutes to build
TINIEST, LARGEST = math.ulp(0.0), 1e12

# What each field may be: numbers, one of some values, or (None) what is checked by itself.
Allowed = Mapping[str, Numbers | tuple[Any, ...] | None]
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
}


def check_fields(part: Any, allowed: Allowed) -> None:
    """Raises ValueError unless every field of a dataclass is what it may be."""
    for field in fields(part):
        value, choices = getattr(part, field.name), allowed[field.name]
        if isinstance(choices, Numbers):
            holds, what = value in choices, str(choices)
        elif choices is None:
            continue
        else:  # by type as well: 1 is not True
            holds = any(type(value) is type(one) and value == one for one in choices)
            what = f"one of {', '.join(map(repr, choices))}"
        if not holds:
            raise ValueError(f"{field.name}={value!r} must be {what}")


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

    def __post_init__(self) -> None:
        check_fields(self, NETWORK_FIELDS)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        rotated = self.rotary_dim or self.head_dim
        if rotated % 2 or rotated > self.head_dim:
            raise ValueError(
                f"rotary_dim={rotated} must be even and at most head_dim={self.head_dim}"
            )


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
    # Trained block of block-causal models, counted from column 0; of others what the authors take.
    block_length: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, SPEC_FIELDS)
        if self.attention == "block_causal" and not self.block_length:
            raise ValueError("block-causal attention needs a block_length in the configuration")
        ends = self.eos_token_ids
        if isinstance(ends, str) or not isinstance(ends, Sequence):
            raise ValueError(f"eos_token_ids={ends!r} must be a tuple of token ids, such as (2,)")
        object.__setattr__(self, "eos_token_ids", tuple(ends))
        self.check_token_ids("mask_token_id", [self.mask_token_id], mask=True)
        self.check_token_ids("eos_token_id", self.eos_token_ids)
        self.check_token_ids("pad_token_id", [self.pad_token_id])

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
class Cost:
    """The price of each thing that a pass does, summed over layers.

    FLOPs are two for each multiply-add of the matrix products, attention included; norms, RoPE and
    softmax are left out, as is usual. They are those that are computed: a key that a mask hides is
    multiplied all the same, and so is padding.
    """

    token_flops: int  # a fed column: projections and feed-forward layers
    pair_flops: int  # a (fed column, key) pair: scores and their mix of values
    head_flops: int  # a row of logits
    slot_bytes: int  # a column of a row of the K/V store
    token_bytes: int  # a fed column, while its largest layer runs; an estimate
    head_bytes: int  # a row of logits and its statistics; an estimate
    tail_flops: int = 0  # of `token_flops`, what follows keys and values in the last layer
    value_flops: int = 0  # a column of which only the values are computed
    num_layers: int = 1  # over which these are summed

    def flops(self, a_pass: PassShape) -> int:
        """Returns the FLOPs of a pass."""
        num_fed, num_logits = a_pass.num_fed, a_pass.num_logit_rows
        a_column = self.token_flops + a_pass.num_seen * self.pair_flops
        a_row = num_fed * a_column
        skipped, compared = a_pass.skipped
        less = skipped * a_column - compared * self.value_flops
        a_row -= less // self.num_layers * (self.num_layers - 1)
        if a_pass.narrows:
            tail = self.tail_flops + a_pass.num_seen * self.pair_flops // self.num_layers
            a_row -= (num_fed - num_logits) * tail
        return a_pass.num_rows * (a_row + num_logits * self.head_flops)

    def row_bytes(self, num_stored: int, num_fed: int, num_head_rows: int) -> int:
        """Returns the estimated memory of one row: its slots, and its part of the widest pass."""
        passed = num_fed * self.token_bytes + num_head_rows * self.head_bytes
        return num_stored * self.slot_bytes + passed

    def times(self, count: int) -> Cost:
        """Returns the price for a model that runs every row `count` times."""
        prices = {field.name: count * getattr(self, field.name) for field in fields(self)}
        return Cost(**{**prices, "num_layers": self.num_layers})


def network_cost(config: NetworkConfig, itemsize: int) -> Cost:
    """Returns the prices of a network whose weights take `itemsize` bytes each."""
    width, inner = config.hidden_size, config.intermediate_size
    q_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    weights = 2 * width * q_width + 2 * width * kv_width + 3 * width * inner
    # One layer's tensors are alive together with the residual and its normed copy; queries and
    # keys are there before and after RoPE.
    widest = max(3 * inner, 3 * q_width + 3 * kv_width)
    return Cost(
        token_flops=2 * config.num_layers * weights,
        pair_flops=4 * config.num_layers * q_width,
        head_flops=2 * width * config.vocab_size,
        slot_bytes=2 * config.num_layers * kv_width * itemsize,
        token_bytes=(2 * width + widest) * itemsize,
        # Logits, their float32 copy, the copy without the mask token, one statistic.
        head_bytes=config.vocab_size * (itemsize + 3 * _FLOAT32),
        tail_flops=2 * (width * q_width + 3 * width * inner),
        value_flops=2 * config.num_layers * width * kv_width,
        num_layers=config.num_layers,
    )


def cost_of(model: Any) -> Cost | None:
    """Returns a model's prices; None for a wrapped module, whose configuration is not known."""
    cost = getattr(model, "cost", None)
    return cost if isinstance(cost, Cost) else None
