"""The seconds of a pass, part by part, from counted FLOPs and bytes and a machine's figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from dllm.advice.figures import Figures
from dllm.advice.workload import Network, Passes
from dllm.state.plan import PassShape

FORMULAS: Mapping[str, str] = {
    "weights": "bytes of the matrices that are read / bandwidth",
    "products": "FLOPs of projections, feed-forward layers and head / rate at the fed columns",
    "pairs": "FLOPs of query-key pairs / rate of attention",
    "keys": "rows x keys x bytes of a slot / bandwidth",
    "layers": "layers x (seconds of a layer + fed columns x seconds of a column)",
    "loop": "seconds of a pass outside of the model + logits x seconds of a logit",
}


@dataclass(frozen=True)
class PassSeconds:
    """Seconds of one pass, by what they are spent on; `FORMULAS` has each."""

    weights: float
    products: float
    pairs: float
    keys: float
    layers: float
    loop: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(asdict(self).values())

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        parts = asdict(self)
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class PassWork:
    """What a pass computes and reads."""

    layer_flops: int  # projections and feed-forward layers
    pair_flops: int
    head_flops: int
    weight_bytes: int  # matrices of the layers
    head_bytes: int
    key_bytes: int

    @property
    def flops(self) -> int:
        """All products."""
        return self.layer_flops + self.pair_flops + self.head_flops

    @property
    def num_bytes(self) -> int:
        """All that is read once."""
        return self.weight_bytes + self.head_bytes + self.key_bytes


def work_of(network: Network, shape: PassShape) -> PassWork:
    """Returns what a pass of a shape computes and reads."""
    cost, layers, rows = network.cost, network.num_layers, shape.num_rows
    queries = layers * shape.num_fed
    if shape.narrows:  # in the last layer only columns with logits ask
        queries -= shape.num_fed - shape.num_logit_rows
    pairs = rows * queries * shape.num_seen * cost.pair_flops // layers
    head = rows * shape.num_logit_rows * cost.head_flops
    return PassWork(
        layer_flops=cost.flops(shape) - pairs - head,
        pair_flops=pairs,
        head_flops=head,
        weight_bytes=network.weight_bytes(rows * shape.num_fed),
        head_bytes=network.head_bytes,
        # What is widened for a layer is written and read once more.
        key_bytes=rows * shape.num_seen * (cost.slot_bytes + 2 * layers * cost.read_bytes),
    )


def seconds_of(network: Network, shape: PassShape, figures: Figures) -> PassSeconds:
    """Returns the predicted seconds of one pass of a shape."""
    work, rows = work_of(network, shape), shape.num_rows
    fed, asked = rows * shape.num_fed, rows * shape.num_logit_rows
    waited, multiplied = figures.product_seconds(work.layer_flops, work.weight_bytes, fed)
    of_head = figures.product_seconds(work.head_flops, work.head_bytes, asked)
    return PassSeconds(
        weights=waited + of_head[0],
        products=multiplied + of_head[1],
        pairs=figures.pair_seconds(work.pair_flops, shape.num_fed),
        keys=work.key_bytes / figures.bytes_per_second,
        layers=network.num_layers * (figures.layer_seconds + fed * figures.column_seconds),
        loop=figures.loop_seconds + asked * network.config.vocab_size * figures.logit_seconds,
    )


def total_seconds(network: Network, passes: Iterable[Passes], figures: Figures) -> float:
    """Returns the predicted seconds of all passes."""
    return sum(one.count * seconds_of(network, one.shape, figures).total for one in passes)
