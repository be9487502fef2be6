"""What lies between the products of a layer, as operations and as kernels: for `benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import dllm
from benchmarks.machine import rounds
from benchmarks.roofs import median_ms
from dllm.kernels.statistics import has_kernel
from dllm.models.layers import Block, Memory
from dllm.state.plan import StepPlan


def of_kernels(model: dllm.HostedModel, step: StepPlan, repeats: int) -> dict[str, float]:
    """Returns the milliseconds of each part between products of one layer in a step.

    Operation by operation, and, where there are kernels, by them.
    """
    works = {**_operations(model, step), **_kernels(model, step)}
    taken = rounds(list(works.values()), repeats, model.device)
    return {name: median_ms(seconds) for name, seconds in zip(works, taken, strict=True)}


def _operations(model: dllm.HostedModel, step: StepPlan) -> dict[str, Callable[[], object]]:
    config, (rows, width) = model.network.config, step.positions.shape
    block, rotation = _first(model), model.network.rotation(step.positions)
    x = _drawn(model, rows, width, config.hidden_size)
    gate = _drawn(model, rows, width, config.intermediate_size)
    q = _drawn(model, rows, width, config.num_heads, config.head_dim)
    k = _drawn(model, rows, width, config.num_kv_heads, config.head_dim)
    store, rotate = model.new_store(rows, step.num_keys), block.attention.rotate
    assert step.stored is not None
    memory = Memory(store, 0, step, store.begin(step.stored))

    def norm() -> object:
        return block.feed_forward_norm(x + x)

    def turn() -> object:
        return rotate(q, rotation), memory.write(rotate(k, rotation), k)

    def gated() -> object:
        return F.silu(gate) * gate

    return {"norm, operations": norm, "rotation, operations": turn, "gated, operations": gated}


def _kernels(model: dllm.HostedModel, step: StepPlan) -> dict[str, Callable[[], object]]:
    if not has_kernel(model.device):
        return {}
    # Triton is optional, and is only there where CUDA is.
    from dllm.kernels.gated_product import gated
    from dllm.kernels.residual_norm import Norm, add_and_norm
    from dllm.kernels.rotated_write import Heads, Slots, rotate_and_write

    config, (rows, width) = model.network.config, step.positions.shape
    x = _drawn(model, rows, width, config.hidden_size)
    both = _drawn(model, rows, width, 2 * config.intermediate_size)
    outputs = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    qkv = _drawn(model, rows, width, outputs)
    own = _first(model).feed_forward_norm
    norm = Norm(own.weight, own.eps, own.multiply_first)
    heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim, config.rope_in_float32)
    rotation, store = model.network.rotation(step.positions), model.new_store(rows, step.num_keys)
    assert step.stored is not None
    slots = Slots(store.keys[0], store.values[0], store.begin(step.stored))
    tables = (rotation.cos, rotation.sin)
    return {
        "norm, kernel": lambda: add_and_norm(x, x, norm),
        "rotation, kernel": lambda: rotate_and_write(qkv, heads, tables, slots),
        "gated, kernel": lambda: gated(*both.chunk(2, -1)),
    }


def _drawn(model: dllm.HostedModel, *size: int) -> Tensor:
    return torch.randn(*size, device=model.device, dtype=model.dtype)


def _first(model: dllm.HostedModel) -> Block:
    block = model.network.blocks[0]
    assert isinstance(block, Block)
    return block
