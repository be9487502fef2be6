"""Looks at whether a checkpoint suits a device: its weights, its dtype, the largest batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dllm.decoding.memory_limits import available, readable
from dllm.doctor.checkpoint import LocalCheckpoint
from dllm.doctor.finding import Finding, failure, ok, warning
from dllm.doctor.hardware import fast_bfloat16
from dllm.models.config import network_cost
from dllm.settings import DEFAULT_BLOCK_LENGTH

CANVAS = 1024  # tokens, prompt and answer, for which batches are estimated
CROWDED = 0.9  # of the free memory: what is left is too little to decode with


def size(checkpoint: LocalCheckpoint, where: torch.device) -> Iterator[Finding]:
    """Yields whether the weights fit the device."""
    needed, free = checkpoint.weight_bytes, available(where)
    text = f"{readable(needed)} in {_name(checkpoint.dtype)}"
    if free is None:
        yield ok("size", f"{text}; the free memory of {where} is not known")
        return
    text = f"{text}, {readable(free)} free on {where}"
    if needed > free:
        ways = "take a narrower --dtype, a larger device, or device_map='auto' in dllm.load"
        yield failure("size", f"{text}: the weights do not fit", ways)
    elif needed > CROWDED * free:
        yield warning("size", f"{text}: little is left to decode with", "take a narrower --dtype")
    else:
        yield ok("size", text)


def dtype(checkpoint: LocalCheckpoint, where: torch.device) -> Iterator[Finding]:
    """Yields whether the device is fast with the checkpoint's dtype."""
    given, name = checkpoint.dtype, _name(checkpoint.dtype)
    if given == torch.bfloat16 and fast_bfloat16(where) is False:
        text = f"{name} is emulated on this {where.type}, which takes several times as long"
        yield warning("dtype", text, "give --dtype float32")
    elif given == torch.float16 and where.type == "cpu":
        yield warning("dtype", f"{name} is slow on a CPU", "give --dtype float32")
    elif given in (torch.float32, torch.float64) and where.type == "cuda":
        text = f"{name} takes at least twice the memory and time of bfloat16"
        yield warning("dtype", text, "give --dtype bfloat16")
    else:
        yield ok("dtype", name)


def batch(checkpoint: LocalCheckpoint, where: torch.device) -> Iterator[Finding]:
    """Yields how many rows are estimated to fit beside the weights, without and with a cache."""
    free = available(where)
    if free is None or checkpoint.weight_bytes > free:
        return
    cost = network_cost(checkpoint.network, checkpoint.dtype.itemsize)
    columns = min(CANVAS, checkpoint.family.read_max_length(checkpoint.config))
    block = checkpoint.family.read_block_length(checkpoint.config) or DEFAULT_BLOCK_LENGTH
    left = free - checkpoint.weight_bytes
    plain, cached = (left // cost.row_bytes(n, columns, block) for n in (0, columns))
    if not plain:
        text = f"by estimate not even one row of {columns} tokens fits beside the weights"
        yield failure("batch", text, "take a narrower --dtype or shorter prompts")
        return
    text = f"about {plain} rows of {columns} tokens fit by estimate, {cached} with a cache"
    yield ok("batch", text)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
