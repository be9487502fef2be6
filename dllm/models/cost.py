"""What a network spends on a pass: floating-point operations and bytes, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dllm.models.config import NetworkConfig
from dllm.state.plan import StepPlan

_FLOAT32 = 4  # bytes


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

    def flops(self, plan: StepPlan) -> int:
        """Returns the FLOPs of a pass, which the plan's shapes decide."""
        num_rows, num_fed = plan.columns.shape
        a_column = self.token_flops + plan.num_seen * self.pair_flops
        a_row = num_fed * a_column
        if plan.reuse is not None:
            reused = num_fed - plan.reuse.num_computed(num_fed)
            less = reused * a_column - plan.reuse.num_compared * self.value_flops
            a_row -= less // self.num_layers * (self.num_layers - 1)
        if plan.narrows:
            tail = self.tail_flops + plan.num_seen * self.pair_flops // self.num_layers
            a_row -= (num_fed - plan.head.shape[1]) * tail
        return num_rows * (a_row + plan.head.shape[1] * self.head_flops)

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
