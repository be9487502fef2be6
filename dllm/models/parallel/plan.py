"""Which part of each parameter a rank has, and where ranks add up or join what they computed.

Column-wise: queries, keys, values, both halves of gated layers, and the head. Row-wise: what
follows them, whose products are added up over ranks. Experts are dealt out whole, and the words of
the embedding. Norms, routers and the norms of queries and keys are on every rank.

The styles are torch's contract, `ParallelStyle`, with plain tensors where torch's own leave a
`DTensor`: to dispatch one takes longer than a product of decoding (two small ones: 13 us plain,
188 us as `DTensor`s and 1234 us in inference mode, torch 2.13 on one CPU).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.nn import functional as F

from dllm.models.config import NetworkConfig
from dllm.models.experts import Experts, has_grouped_product
from dllm.models.layers import Attention, MixtureOfExperts, SwiGLU
from dllm.models.parallel.group import Group
from dllm.models.transformer import Transformer

Range = tuple[int, int]


@dataclass
class Cutting:
    """Leaves a network on the CPU, which has its weights, the part of one rank."""

    group: Group

    def cut(self, module: nn.Module, kind: str, dim: int, *ranges: Range) -> None:
        """Leaves a parameter its part; nothing to do where there is none of that kind."""
        weight = getattr(module, kind)
        if weight is None:
            return
        parts = [weight.detach().narrow(dim, start, end - start) for start, end in ranges]
        # In memory of its own: a view would keep the whole.
        setattr(module, kind, nn.Parameter(torch.cat(parts, dim), requires_grad=False))

    def columns(self, linear: nn.Linear, *ranges: Range) -> None:
        """Leaves a layer some of its outputs."""
        for kind in ("weight", "bias"):
            self.cut(linear, kind, 0, *ranges)
        linear.out_features = len(linear.weight)

    def rows(self, linear: nn.Linear, part: Range) -> None:
        """Leaves a layer without bias some of its inputs: its outputs are to be added up."""
        assert linear.bias is None, "a bias would be added once a rank"
        self.cut(linear, "weight", 1, part)
        linear.in_features = linear.weight.shape[1]

    def add_up(self, module: nn.Module) -> None:
        """Has ranks add up what a module returns.

        Not its last layer: `speed` may put others in the place of linear layers.
        """
        module.register_forward_hook(lambda _, given, found: self.group.added_up(found))


@dataclass
class Heads(ParallelStyle):
    """Some heads of attention: whole groups of queries with the keys and values that they share."""

    cutting: Cutting

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        attention, cutting = cast("Attention", module), self.cutting
        q_width, kv_width, width = attention.q_width, attention.kv_width, attention.config.head_dim
        first, last = cutting.group.part(kv_width // width)
        shared = q_width // kv_width
        q = (first * shared * width, last * shared * width)
        kv = (first * width, last * width)
        if attention.config.fused_qkv:
            behind = [(q_width + at + kv[0], q_width + at + kv[1]) for at in (0, kv_width)]
            cutting.columns(attention.qkv, q, *behind)
        else:
            for linear, part in ((attention.q, q), (attention.k, kv), (attention.v, kv)):
                cutting.columns(linear, part)
        cutting.rows(attention.out, q)
        attention.q_width, attention.kv_width = q[1] - q[0], kv[1] - kv[0]
        cutting.add_up(attention)
        return attention


@dataclass
class FeedForward(ParallelStyle):
    """Some inner columns of a gated layer, and some experts of a mixture."""

    cutting: Cutting

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if isinstance(module, MixtureOfExperts):
            part = self.cutting.group.part(module.config.num_experts)
            for kind in ("gate_up", "down"):
                self.cutting.cut(module.experts, kind, 0, part)
            if module.shared is not None:
                self._gated(module.shared)
        else:
            self._gated(cast("SwiGLU", module))
        self.cutting.add_up(module)
        return module

    def _gated(self, layer: SwiGLU) -> None:
        inner = layer.down.in_features
        part = self.cutting.group.part(inner)
        if layer.fused:
            self.cutting.columns(layer.gate_up, part, (inner + part[0], inner + part[1]))
        else:
            self.cutting.columns(layer.gate, part)
            self.cutting.columns(layer.up, part)
        self.cutting.rows(layer.down, part)


class OwnWords(nn.Embedding):
    """The embedding of some words; ranks add up, for each word is of one of them."""

    def __init__(self, weight: Tensor, first: int, group: Group) -> None:
        super().__init__(weight.shape[0], weight.shape[1], device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.first, self.group = first, group

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 the name that torch gives it
        own = input - self.first
        foreign = (own < 0) | (own >= len(self.weight))
        found = F.embedding(own.masked_fill(foreign, 0), self.weight)
        return self.group.added_up(found.masked_fill(foreign[..., None], 0))


class JoinedHead(nn.Module):
    """The logits of all words, of which this rank computes some."""

    def __init__(self, own: nn.Linear, vocab_size: int, group: Group) -> None:
        super().__init__()
        self.own, self.group = own, group
        parts = (group.part(vocab_size, rank) for rank in range(group.size))
        self.counts = [end - start for start, end in parts]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.own(x)
        logits = F.pad(logits, (0, max(self.counts) - logits.shape[-1]))
        parts = zip(self.group.joined(logits), self.counts, strict=True)
        return torch.cat([part[..., :count] for part, count in parts], -1)


class OwnExperts(nn.Module):
    """The outputs of some experts, zero for those that other ranks have."""

    def __init__(self, own: Experts, first: int) -> None:
        super().__init__()
        self.own, self.first = own, first

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Returns what tokens x (N, d) become in their experts (N, k) int64, (N, k, d)."""
        count = len(self.own.down)
        at = chosen - self.first
        foreign = (at < 0) | (at >= count)
        if has_grouped_product(self.own.gate_up) and has_grouped_product(self.own.down):
            # A number behind the last: sorted behind all groups, where nothing is multiplied.
            outputs = self.own.sorted(x, at.masked_fill(foreign, count))
        else:
            outputs = self.own.batched(x, at.masked_fill(foreign, 0))
        return outputs.masked_fill(foreign[..., None], 0)


def check_divides(config: NetworkConfig, size: int) -> None:
    """Raises ValueError where ranks would be left without a head or an expert, or with parts."""
    if config.num_kv_heads % size:
        fitting = [n for n in range(2, config.num_kv_heads + 1) if config.num_kv_heads % n == 0]
        fits = f"use {' or '.join(map(str, fitting))} processes" if fitting else "use one process"
        raise ValueError(
            f"tensor_parallel={size}: the network has num_kv_heads={config.num_kv_heads} (of "
            f"num_heads={config.num_heads}), which {size} processes cannot share equally: {fits}"
        )
    if config.experts is not None and config.experts.num_experts < size:
        raise ValueError(
            f"tensor_parallel={size}: the network has num_experts={config.experts.num_experts}, "
            "and each process needs one: use fewer processes"
        )


def shard(network: Transformer, group: Group) -> None:
    """Leaves a network on the CPU the part of one rank, with what joins ranks around it."""
    config, cutting = network.config, Cutting(group)
    words = group.part(config.vocab_size)
    cutting.columns(network.head, words)
    weight = network.embedding.weight.detach()[slice(*words)].clone()
    network.embedding = OwnWords(weight, words[0], group)
    if config.tie_embeddings:
        network.head.weight = network.embedding.weight
    styles: dict[str, ParallelStyle] = {}
    for name, part in network.named_children():
        if isinstance(part, nn.ModuleList):
            styles[f"{name}.*.attention"] = Heads(cutting)
            styles[f"{name}.*.feed_forward"] = FeedForward(cutting)
    parallelize_module(network, DeviceMesh.from_group(group.process_group, "cpu"), styles)
    for block in network.layers:
        behind = cast("Any", block).feed_forward
        if isinstance(behind, MixtureOfExperts):
            first, _ = group.part(behind.config.num_experts)
            cast("Any", behind).experts = OwnExperts(behind.experts, first)
    cast("Any", network).head = JoinedHead(network.head, config.vocab_size, group)
