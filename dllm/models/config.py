"""What a model is to the rest: its network's shape, its special tokens, the price of a pass."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from dllm.state.plan import PassShape

AttentionKind = Literal["full", "block_causal", "causal"]

_FLOAT32 = 4  # bytes


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or hosted."""


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
    block_length: int | None = None  # trained block of block-causal models, counted from column 0

    def __post_init__(self) -> None:
        if self.attention == "block_causal" and not self.block_length:
            raise ValueError("block-causal attention needs a block_length in the configuration")
        special = {"mask_token_id": self.mask_token_id, "pad_token_id": self.pad_token_id}
        for name, token in special.items():
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"{name}={token} is outside the vocabulary of {self.vocab_size}")


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
