"""What a machine needs for each thing that a pass does, measured or assumed."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from dllm.options import Options, Positive


@dataclass(frozen=True)
class Curve:
    """A rate over a number of columns; between two points it is a power of the number.

    Before the first point and behind the last the rate is that of the point.
    """

    points: tuple[tuple[int, float], ...]  # (columns, FLOPs a second), by columns

    def at(self, columns: int) -> float:
        """Returns the rate at a number of columns."""
        behind = bisect_right([known for known, _ in self.points], columns)
        if behind in (0, len(self.points)):
            return self.points[max(behind - 1, 0)][1]
        (low, under), (high, over) = self.points[behind - 1 : behind + 1]
        share = math.log(columns / low) / math.log(high / low)
        return under * (over / under) ** share


@dataclass(frozen=True)
class Limits(Options):
    """The two figures that suffice to say where a pass is bound."""

    bandwidth: Positive  # of the memory, 1e9 bytes a second
    rate: Positive  # of large matrix products, 1e9 FLOPs a second


ASSUMED = {  # by the kind of device; a round figure of one of its kind, not of this one
    "cpu": Limits(20, 100),
    "cuda": Limits(2000, 300_000),
}


@dataclass(frozen=True)
class Figures:
    """Seconds of a machine for what a pass of one network does."""

    source: str  # "assumed", "given" or "measured"
    bytes_per_second: float  # weights of layers in the order of a pass
    flops_per_second: float  # a large product
    products: Curve | None = None  # FLOPs a second over fed columns, weights read; None: no such
    pairs: Curve | None = None  # FLOPs a second of attention over the queries of a row
    layer_seconds: float = 0.0  # a layer beside its products and pairs: starts of operations
    column_seconds: float = 0.0  # a fed column of a layer: norms, rotations, gates
    loop_seconds: float = 0.0  # a pass outside of the model: canvas, cache, scheduler
    logit_seconds: float = 0.0  # a logit in the statistics of a step

    def product_seconds(self, flops: int, num_bytes: int, columns: int) -> tuple[float, float]:
        """Returns what products wait for their weights, and what they take beyond that.

        The sum of both is bytes / bandwidth + FLOPs / rate, or what a curve was measured to be.
        """
        weights = num_bytes / self.bytes_per_second
        if self.products is None:
            return weights, flops / self.flops_per_second
        total = flops / self.products.at(columns)
        weights = min(weights, total)
        return weights, total - weights

    def pair_seconds(self, flops: int, queries: int) -> float:
        """Returns what attention takes whose rows have so many queries each."""
        rate = self.flops_per_second if self.pairs is None else self.pairs.at(queries)
        return flops / rate


def assumed(device: str, bandwidth: float | None = None, rate: float | None = None) -> Figures:
    """Returns figures of a kind of device, or those given in their place.

    Units are 1e9 bytes and 1e9 FLOPs a second. Overheads are not known, and 0.
    """
    usual = ASSUMED.get(device)
    if usual is None and (bandwidth is None or rate is None):
        raise ValueError(
            f"nothing is assumed of a device {device!r}, only of {', '.join(ASSUMED)}: give "
            "--bandwidth and --rate, or --measure"
        )
    limits = Limits(
        usual.bandwidth if bandwidth is None and usual else bandwidth or 0,
        usual.rate if rate is None and usual else rate or 0,
    )
    source = "assumed" if bandwidth is None and rate is None else "given"
    return Figures(source, 1e9 * limits.bandwidth, 1e9 * limits.rate)
