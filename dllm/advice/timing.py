"""Times what a machine needs for each thing that a pass of a network does, in some seconds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.advice.figures import Curve, Figures
from dllm.advice.seconds import work_of
from dllm.advice.workload import Network, Workload, step_of
from dllm.generate import generate
from dllm.models.config import ModelSpec, NetworkConfig
from dllm.models.memory import CROWDED, NotEnoughMemoryError, available, readable
from dllm.models.model import HostedModel
from dllm.models.transformer import Transformer
from dllm.settings import Settings
from dllm.state.plan import PassShape, StepPlan
from dllm.state.store import KVStore

ROUNDS = 7  # in which all that is compared takes turns; their median counts
SECONDS = 0.02  # a time is taken over at least so long
MOST_TIMED = 4096  # fed columns; a rate hardly rises behind that
LARGE = 2**28  # bytes of weights that go through memory, not one cache of a processor
LAYERS = (1, 4)  # of two networks whose difference is that of whole layers
SMALL = 512  # vocabulary of a network whose layers, or whose loop, are timed
STATISTICS = 16384  # the same, where statistics are


@dataclass(frozen=True)
class Bench:
    """Where and on what figures are taken."""

    network: Network
    dtype: torch.dtype
    device: torch.device

    def tensor(self, *shape: int) -> Tensor:
        """Returns random numbers of the weights' dtype."""
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def wait(self) -> None:
        """Waits for a device that works beside the host."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, works: Sequence[Callable[[], object]]) -> list[float]:
        """Returns the median seconds of each work, all done in turn in every round."""
        repeats = [max(1, round(SECONDS / self._once(work))) for work in works]
        taken: list[list[float]] = [[] for _ in works]
        for _ in range(ROUNDS):
            for work, count, seconds in zip(works, repeats, taken, strict=True):
                seconds.append(self._timed(work, count))
        return [statistics.median(seconds) for seconds in taken]

    def _once(self, work: Callable[[], object]) -> float:
        work()
        return max(self._timed(work, 1), 1e-7)

    def _timed(self, work: Callable[[], object], count: int) -> float:
        self.wait()
        start = perf_counter()
        for _ in range(count):
            work()
        self.wait()
        return (perf_counter() - start) / count

    def model(self, num_layers: int, config: NetworkConfig) -> HostedModel:
        """Returns a network with random weights, of so many layers."""
        usual = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                made = Transformer(replace(config, num_layers=num_layers))
        finally:
            torch.set_default_dtype(usual)
        last = config.vocab_size - 1
        spec = ModelSpec(config.vocab_size, 2**20, last, (last - 1,), last - 1)
        return HostedModel("random", made.eval().requires_grad_(False), spec)


@torch.inference_mode()
def measure(bench: Bench, workload: Workload) -> Figures:
    """Returns figures at the widths of a workload's passes.

    Raises NotEnoughMemoryError where four layers of the network do not fit.
    """
    _check_memory(bench)
    step = step_of("dual", workload)
    whole = replace(step, kind="refresh", num_fed=workload.num_columns)
    whole = replace(whole, num_stored=whole.num_fed)
    bandwidth, products = _products(bench, [one.num_rows * one.num_fed for one in (step, whole)])
    figures = Figures(
        source="measured",
        bytes_per_second=bandwidth,
        flops_per_second=max(rate for _, rate in products.points),
        products=products,
        pairs=_pairs(bench, step, whole),
    )
    layer, column = _layers(bench, figures, step, whole)
    loop, logit = _loop(bench, workload.block_length)
    return replace(
        figures,
        layer_seconds=layer,
        column_seconds=column,
        loop_seconds=loop,
        logit_seconds=logit,
    )


def _products(bench: Bench, asked: Sequence[int]) -> tuple[float, Curve]:
    """Returns the bytes a second of one column's products, and FLOPs a second over columns."""
    config = bench.network.config
    width, q_width = config.hidden_size, config.num_heads * config.head_dim
    experts = config.experts
    inner = config.intermediate_size if experts is None else experts.intermediate_size
    shapes = [(q_width, width), (width, q_width), (inner, width), (inner, width), (width, inner)]
    one = sum(rows * columns for rows, columns in shapes)
    layers = min(config.num_layers, max(1, LARGE // (one * bench.dtype.itemsize)))
    weights = [bench.tensor(*shape) for _ in range(layers) for shape in shapes]
    counts = sorted({1, 8, 32, 128, *(min(count, MOST_TIMED) for count in asked)})

    def work(count: int) -> Callable[[], object]:
        fed = {size: bench.tensor(count, size) for _, size in shapes}
        return lambda: [F.linear(fed[weight.shape[1]], weight) for weight in weights]

    taken = bench.seconds([work(count) for count in counts])
    points = [(n, 2 * layers * one * n / s) for n, s in zip(counts, taken, strict=True)]
    return layers * one * bench.dtype.itemsize / taken[0], Curve(tuple(points))


def _pairs(bench: Bench, *shapes: PassShape) -> Curve:
    """Returns the FLOPs a second of attention over the queries of a row."""
    config, works, flops = bench.network.config, [], []
    for shape in shapes:
        heads, keys = (shape.num_rows, config.num_heads), min(shape.num_seen, MOST_TIMED)
        queries = min(shape.num_fed, MOST_TIMED)
        asking = bench.tensor(*heads, queries, config.head_dim)
        seen = bench.tensor(*heads, keys, config.head_dim)
        works.append(lambda q=asking, k=seen: F.scaled_dot_product_attention(q, k, k))
        flops.append(4 * shape.num_rows * queries * keys * config.num_heads * config.head_dim)
    taken = bench.seconds(works)
    rates = [f / s for f, s in zip(flops, taken, strict=True)]
    return Curve(tuple(sorted({s.num_fed: r for s, r in zip(shapes, rates, strict=True)}.items())))


def _layers(
    bench: Bench, figures: Figures, step: PassShape, whole: PassShape
) -> tuple[float, float]:
    """Returns the seconds of a layer, and of a fed column of it, beside products and pairs.

    Two networks differ by whole layers; what a narrow and a wide pass take more there than is
    predicted of the layers makes two equations.
    """
    config = replace(bench.network.config, vocab_size=SMALL)
    models = [bench.model(count, config) for count in LAYERS]
    works = [_forward(model, shape) for shape in (step, whole) for model in models]
    few, many, few_whole, many_whole = bench.seconds(works)
    further = LAYERS[1] - LAYERS[0]
    left = []
    for shape, seconds in ((step, many - few), (whole, many_whole - few_whole)):
        full = replace(shape, whole_layer=True)
        work = work_of(bench.network, full)
        fed = shape.num_rows * shape.num_fed
        products = figures.product_seconds(work.layer_flops, work.weight_bytes, fed)
        pairs = figures.pair_seconds(work.pair_flops, shape.num_fed)
        known = (sum(products) + pairs) / bench.network.num_layers
        known += work.key_bytes / bench.network.num_layers / figures.bytes_per_second
        left.append((fed, seconds / further - known))
    (narrow, under), (wide, over) = left
    column = max(0.0, (over - under) / (wide - narrow)) if wide > narrow else 0.0
    return max(0.0, under - narrow * column), column


def _loop(bench: Bench, block: int) -> tuple[float, float]:
    """Returns the seconds of a pass outside of the model, and those of a logit there."""
    small = replace(
        bench.network.config,
        vocab_size=SMALL,
        hidden_size=64,
        intermediate_size=64,
        num_heads=1,
        num_kv_heads=1,
        head_dim=64,
        rotary_dim=None,
        experts=None,
    )
    outside = []
    for size in (SMALL, STATISTICS):
        watched = Watched(bench.model(1, replace(small, vocab_size=size)), bench)
        outside.append(statistics.median(watched.outside(block) for _ in range(ROUNDS)))
    logit = max(0.0, outside[1] - outside[0]) / (block * (STATISTICS - SMALL))
    return max(0.0, outside[0] - block * SMALL * logit), logit


class Watched:
    """A model that adds up the seconds of its passes."""

    def __init__(self, model: HostedModel, bench: Bench) -> None:
        self.model = model
        self.bench = bench
        self.inside = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns the model's logits."""
        self.bench.wait()
        start = perf_counter()
        logits = self.model.forward(tokens, plan, store)
        self.bench.wait()
        self.inside += perf_counter() - start
        return logits

    def outside(self, block: int) -> float:
        """Returns the seconds of a pass beside the model, of one block of a generation."""
        self.inside = 0.0
        settings = Settings(
            scheduler="fixed_quota", cache="dual", max_new_tokens=block, block_length=block
        )
        output = generate(self, [[1, 2, 3, 4]], settings)
        return (output.metrics.seconds - self.inside) / output.metrics.num_forwards


def _forward(model: HostedModel, shape: PassShape) -> Callable[[], object]:
    """Returns a pass of a shape that can be timed, over a store of its keys."""
    rows, keys, fed = shape.num_rows, shape.num_keys, shape.num_fed
    columns = torch.arange(keys - fed, keys, device=model.device).expand(rows, -1)
    head = torch.arange(fed, device=model.device)[-shape.num_logit_rows :].expand(rows, -1)
    plan = StepPlan(shape.kind, columns, head, keys, stored=columns)
    store = model.new_store(rows, keys)
    tokens = torch.randint(0, model.spec.vocab_size - 2, columns.shape, device=model.device)
    return lambda: model.forward(tokens, plan, store)


def _check_memory(bench: Bench) -> None:
    """Raises NotEnoughMemoryError where the weights that are timed do not fit."""
    network, free = bench.network, available(bench.device)
    needed = sum(LAYERS) * network.weight_bytes(2**20) // network.num_layers + LARGE
    if free is not None and needed > CROWDED * free:
        raise NotEnoughMemoryError(
            f"--measure times {sum(LAYERS)} layers, which take {readable(needed)}, and "
            f"{readable(free)} are free: take a narrower --dtype, or give --bandwidth and --rate"
        )
