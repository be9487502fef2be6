"""The price of a pass: FLOPs and memory, read off the shape of a network."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from dllm.models.config import NetworkConfig
from dllm.state.plan import PassShape

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
    sampled_bytes: int = 0  # the same, more of it where tokens are drawn; an estimate
    tail_flops: int = 0  # of `token_flops`, what follows keys and values in the last layer
    value_flops: int = 0  # a column of which only the values are computed
    state_flops: int = 0  # a number that is made of a column's state
    first_flops: int = 0  # of `token_flops`, those of the first layer
    num_layers: int = 1  # over which these are summed
    read_bytes: int = 0  # a column of the store, while the largest layer reads it; an estimate

    def flops(self, a_pass: PassShape) -> int:
        """Returns the FLOPs of a pass."""
        num_fed, num_logits = a_pass.num_fed, a_pass.num_logit_rows
        pairs = a_pass.num_seen * self.pair_flops // self.num_layers  # of a column and layer
        a_row = num_fed * (self.token_flops + self.num_layers * pairs)
        further = self.num_layers - 1  # the first layer computes all columns
        if further:
            of_all = self.token_flops - self.first_flops + further * pairs
            a_row -= a_pass.saving.left_out(further) * of_all // further
            besides = a_pass.saving.values * self.value_flops
            besides += a_pass.saving.numbers * self.state_flops
            a_row += besides // self.num_layers * further
        if a_pass.narrows:
            a_row -= (num_fed - num_logits) * (self.tail_flops + pairs)
        return a_pass.num_rows * (a_row + num_logits * self.head_flops)

    def row_bytes(
        self, num_stored: int, num_fed: int, num_head_rows: int, sampled: bool = False
    ) -> int:
        """Returns the estimated memory of one row: its slots, and its part of the widest pass.

        `sampled`: tokens are drawn (temperature > 0), which takes several times the statistics.
        """
        a_head_row = self.head_bytes + (self.sampled_bytes if sampled else 0)
        passed = num_fed * self.token_bytes + num_head_rows * a_head_row
        return num_stored * (self.slot_bytes + self.read_bytes) + passed

    def times(self, count: int) -> Cost:
        """Returns the price for a model that runs every row `count` times."""
        prices = {field.name: count * getattr(self, field.name) for field in fields(self)}
        return type(self)(**{**prices, "num_layers": self.num_layers})


@dataclass(frozen=True)
class TwoStackCost(Cost):
    """The same of an encoder and a decoder; prices without another word are the decoder's."""

    encoded_flops: int = 0  # an encoded column, with what it leaves for the decoder
    encoded_pair_flops: int = 0  # an (encoded column, key) pair

    def flops(self, a_pass: PassShape) -> int:
        encoded = a_pass.num_stored
        a_row = encoded * (self.encoded_flops + a_pass.num_keys * self.encoded_pair_flops)
        decoded = replace(a_pass, num_fed=a_pass.num_fed - encoded, num_stored=0)
        return a_pass.num_rows * a_row + super().flops(decoded)


def network_cost(config: NetworkConfig, itemsize: int, rounds_keys: bool = False) -> Cost:
    """Returns the prices of a network whose weights take `itemsize` bytes each.

    Of a mixture of experts those count that a token goes through. `rounds_keys`: the store holds
    8 bits for each number, with a scale of float32 for each head.
    """
    if config.decoder is None:
        cost = _stack_cost(config, itemsize)
        return _with_rounded_keys(cost, config, itemsize) if rounds_keys else cost
    count, shared = config.decoder.num_layers, config.decoder.shared
    decoder = _stack_cost(replace(config, num_layers=count, decoder=None), itemsize)
    encoder = _stack_cost(replace(config, decoder=None), itemsize)
    prices = {field.name: getattr(decoder, field.name) for field in fields(decoder)}
    remembered = 4 * config.hidden_size * config.num_kv_heads * config.head_dim
    if shared:  # of the encoder's last layer only the keys and values are made
        further = {
            "slot_bytes": encoder.slot_bytes,
            "encoded_flops": encoder.token_flops - encoder.first_flops + remembered,
            "encoded_pair_flops": encoder.pair_flops // config.num_layers * (config.num_layers - 1),
        }
    else:
        further = {
            "slot_bytes": encoder.slot_bytes + decoder.slot_bytes,
            "encoded_flops": encoder.token_flops + count * remembered,
            "encoded_pair_flops": encoder.pair_flops,
        }
    return TwoStackCost(**{**prices, **further})


def _with_rounded_keys(cost: Cost, config: NetworkConfig, itemsize: int) -> Cost:
    """Returns prices whose slots are rounded, and widened again by each layer that reads them."""
    scale = max(itemsize, _FLOAT32)
    a_head = config.head_dim + scale
    # Keys and values stand there widened, the last of them in the dtype of its scales as well.
    read = config.num_kv_heads * config.head_dim * (2 * itemsize + scale)
    slot = 2 * config.num_layers * config.num_kv_heads * a_head
    return replace(cost, slot_bytes=slot, read_bytes=read)


def _stack_cost(config: NetworkConfig, itemsize: int) -> Cost:
    """Returns the prices of one stack of layers, and of the head."""
    width = config.hidden_size
    q_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    attention = 2 * width * q_width + 2 * width * kv_width
    inner = [_feed_forward(config, layer).active for layer in range(config.num_layers)]
    return Cost(
        token_flops=2 * (config.num_layers * attention + sum(inner)),
        pair_flops=4 * config.num_layers * q_width,
        head_flops=2 * width * config.vocab_size,
        slot_bytes=2 * config.num_layers * kv_width * itemsize,
        token_bytes=(2 * width + _widest(config)) * itemsize,
        # Logits, their float32 copy, the copy without the mask token, one statistic.
        head_bytes=config.vocab_size * (itemsize + 3 * _FLOAT32),
        # Noise and its hash in 64 bits; measured, top_p included: 38 to 46 bytes a logit in all.
        sampled_bytes=config.vocab_size * 8 * _FLOAT32,
        tail_flops=2 * (width * q_width + inner[-1]),
        value_flops=2 * config.num_layers * width * kv_width,
        state_flops=2 * config.num_layers * width,
        first_flops=2 * (attention + inner[0]),
        num_layers=config.num_layers,
    )


@dataclass(frozen=True)
class Parameters:
    """How many numbers are there, and how many a token meets."""

    total: int
    active: int


def _feed_forward(config: NetworkConfig, layer: int) -> Parameters:
    """Returns the weights of a layer's products behind attention, router included."""
    width, experts = config.hidden_size, config.experts_of(layer)
    if experts is None:
        one = 3 * width * config.intermediate_size
        return Parameters(one, one)
    always = experts.num_experts * width + 3 * width * (experts.shared_size or 0)
    one = 3 * width * experts.intermediate_size
    return Parameters(always + experts.num_experts * one, always + experts.num_active * one)


def idle_parameters(config: NetworkConfig) -> int:
    """Returns how many weights of a network a token does not meet: those of other experts."""
    layers = [_feed_forward(config, layer) for layer in range(config.num_layers)]
    return sum(layer.total - layer.active for layer in layers)


def rounded_bytes(weight: Tensor, bits: int, group_size: int | None, scale: int) -> int:
    """Returns the memory of a matrix that is rounded to so many bits.

    `group_size`: weights of a row that share a scale of `scale` bytes, None: all of it. Of 4 bits a
    zero of a byte stands beside each.
    """
    width = weight.shape[-1]
    groups = weight.numel() // width * -(-width // (group_size or width))
    return weight.numel() * bits // 8 + groups * (scale + (bits == 4))


def narrow_bytes(network: nn.Module, bits: int, group_size: int | None = None) -> int:
    """Returns the memory of weights whose matrices in layers are rounded to so many bits.

    With scales of two bytes; everything else, embedding and head too, in bfloat16.
    """
    total = 0
    for name, weight in network.named_parameters():
        if name.startswith(("blocks.", "decoder_blocks.")) and weight.dim() > 1:
            total += rounded_bytes(weight, bits, group_size, 2)
        else:
            total += 2 * weight.numel()
    return total


def _widest(config: NetworkConfig) -> int:
    """Returns the numbers of a column that are alive while the widest part of a layer runs.

    One layer's tensors are alive together with the residual and its normed copy; queries and keys
    are there before and after RoPE, and an expert's inputs and outputs beside what is between.
    """
    attention = 3 * (config.num_heads + config.num_kv_heads) * config.head_dim
    widest, experts = max(3 * config.intermediate_size, attention), config.experts
    if experts is not None:
        one = 3 * experts.intermediate_size + 2 * config.hidden_size
        widest = max(widest, experts.num_active * one + 3 * (experts.shared_size or 0))
    return widest


def cost_of(model: Any) -> Cost | None:
    """Returns a model's prices; None for a wrapped module, whose configuration is not known."""
    cost = getattr(model, "cost", None)
    return cost if isinstance(cost, Cost) else None
