"""What is asked of a network: lengths, rows, and the passes that a cache makes of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from dllm.decoding.passes import LOGIT_GROUP
from dllm.models.config import NetworkConfig
from dllm.models.cost import Cost, idle_parameters, network_cost
from dllm.options import Count, Options, Range
from dllm.state.plan import PassShape

MOST_COLUMNS = 2**17  # of a prompt or an answer: their passes are counted one by one
Columns = Annotated[int, Range(1, MOST_COLUMNS)]


@dataclass(frozen=True)
class Workload(Options):
    """A batch of answers of one length."""

    prompt_length: Columns
    answer_length: Columns
    block_length: Count
    batch: Annotated[int, Range(1, 2**16)] = 1
    tokens_per_step: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answer_length % self.block_length:
            raise ValueError(
                f"answer_length={self.answer_length} is not a multiple of "
                f"block_length={self.block_length}"
            )

    @property
    def num_columns(self) -> int:
        """Prompt and answer."""
        return self.prompt_length + self.answer_length

    @property
    def steps_of_block(self) -> int:
        """Passes until a block has no masks."""
        return math.ceil(self.block_length / self.tokens_per_step)

    @property
    def starts(self) -> range:
        """The first column of each block."""
        return range(self.prompt_length, self.num_columns, self.block_length)


@dataclass(frozen=True)
class Passes:
    """Passes of one shape."""

    shape: PassShape
    count: int


@dataclass(frozen=True)
class Network:
    """What of a network decides the price of a pass."""

    config: NetworkConfig
    itemsize: int  # bytes of a weight
    rounds_keys: bool = False  # the K/V store holds 8 bits

    def __post_init__(self) -> None:
        if self.config.decoder is not None:
            raise ValueError(
                "a network with an encoder and a decoder has prices of its own, which nothing "
                "is advised on; `dllm eval` measures it"
            )

    @property
    def cost(self) -> Cost:
        """Its FLOPs and bytes."""
        return network_cost(self.config, self.itemsize, self.rounds_keys)

    @property
    def num_layers(self) -> int:
        """Its layers."""
        return self.config.num_layers

    def weight_bytes(self, columns: int) -> int:
        """Returns the bytes of the layers' matrices that a pass of so many columns reads.

        Of a mixture of experts at most those of `num_active` experts a column, and no more than
        all: columns that share an expert read it once, so it is an upper bound.
        """
        active, experts = self.cost.token_flops // 2, self.config.experts
        if experts is None:
            return active * self.itemsize
        layers = self.num_layers - experts.num_dense_layers
        one = 3 * self.config.hidden_size * experts.intermediate_size
        chosen = layers * experts.num_active * one
        most = chosen + idle_parameters(self.config)
        return (active - chosen + min(columns * chosen, most)) * self.itemsize

    @property
    def head_bytes(self) -> int:
        """The bytes of the head's matrix."""
        return self.cost.head_flops // 2 * self.itemsize


def passes_of(cache: str, workload: Workload) -> list[Passes]:
    """Returns the passes of an answer with a cache of `CACHES`, whose rows end together."""
    return list(CACHES[cache](workload))


def step_of(cache: str, workload: Workload) -> PassShape:
    """Returns the shape of the pass that a cached answer has most of, the widest of those."""
    passes = passes_of(cache, workload)
    stepping = [one for one in passes if one.shape.kind == "step"] or passes
    return max(stepping, key=lambda one: (one.count, one.shape.num_logit_rows)).shape


def autoregressive(workload: Workload) -> list[Passes]:
    """Returns the passes of one token each of a causal model with a K/V cache.

    The first reads the prompt. Later ones have one key more each; their mean is taken.
    """
    prompt, more = workload.prompt_length, workload.answer_length - 1
    first = PassShape("refresh", workload.batch, prompt, prompt, prompt, 1)
    keys = prompt + math.ceil(workload.answer_length / 2)
    step = PassShape("step", workload.batch, 1, keys, 1, 1)
    return [Passes(first, 1), *([Passes(step, more)] if more else [])]


def with_canvases(shape: PassShape, count: int) -> PassShape:
    """Returns the pass of a verifier that runs so many canvases of each row, as rows."""
    return replace(shape, num_rows=count * shape.num_rows)


def _logit_rows(workload: Workload) -> list[tuple[int, int]]:
    """Returns the logit rows of a block's passes, and of how many passes: first to last.

    Only masks get logits, in groups of `LOGIT_GROUP`; the first pass has a block of masks.
    """
    block, tokens = workload.block_length, workload.tokens_per_step
    groups = (math.ceil((block - done) / LOGIT_GROUP) for done in range(0, block, tokens))
    counted = Counter(min(block, LOGIT_GROUP * group) for group in groups)
    return list(counted.items())


def _later(workload: Workload) -> list[tuple[int, int]]:
    """Returns the same without the first pass."""
    (first, count), *rest = _logit_rows(workload)
    return [(first, count - 1), *rest] if count > 1 else rest


def _whole(workload: Workload, num_logit_rows: int) -> PassShape:
    columns = workload.num_columns
    return PassShape("refresh", workload.batch, columns, columns, columns, num_logit_rows)


def _none(workload: Workload) -> Iterator[Passes]:
    for rows, count in _logit_rows(workload):
        yield Passes(_whole(workload, rows), len(workload.starts) * count)


def _cached(workload: Workload, fed_from: Callable[[int], int]) -> Iterator[Passes]:
    """Yields the refresh of each block and the steps, which feed what the cache does not hold."""
    yield Passes(_whole(workload, workload.block_length), len(workload.starts))
    for start in workload.starts:
        fed, keys = fed_from(start), workload.num_columns
        for rows, count in _later(workload):
            yield Passes(PassShape("step", workload.batch, fed, keys, fed, rows), count)


def _prefix(workload: Workload) -> Iterator[Passes]:
    return _cached(workload, lambda start: workload.num_columns - start)


def _dual(workload: Workload) -> Iterator[Passes]:
    return _cached(workload, lambda _: workload.block_length)


def _block_causal(workload: Workload) -> Iterator[Passes]:
    """Yields of each block the pass that stores what is before it, and the steps."""
    block, batch, stored = workload.block_length, workload.batch, 0
    for start in workload.starts:
        end = start + block
        yield Passes(PassShape("step", batch, end - stored, end, end - stored, block), 1)
        for rows, count in _later(workload):
            yield Passes(PassShape("step", batch, block, end, block, rows), count)
        stored = start


CACHES: Mapping[str, Callable[[Workload], Iterator[Passes]]] = {
    "none": _none,
    "prefix": _prefix,
    "dual": _dual,
    "block_causal": _block_causal,
}
