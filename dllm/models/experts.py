"""A mixture of experts: the router, the experts' products, and their sum."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm.models.config import ExpertsConfig

# Rows that go through all experts at once where there is no grouped product.
_BATCHED_ROWS = 64

_ALIGNED = 16  # bytes of which grouped products of narrow dtypes want multiples as strides


class Router(nn.Module):
    """Chooses a token's experts and how much each counts."""

    bias: Tensor | None

    def __init__(self, config: ExpertsConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.weight = _parameter(config.num_experts, width)
        # In float32 whatever the rest: it decides between experts whose scores are close.
        bias = None if config.bias == "none" else torch.zeros(config.num_experts)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns weights (N, k), and experts (N, k) int64, of tokens x (N, d)."""
        config = self.config
        scores = self.scores(x)
        ranked = scores if self.bias is None else scores + self.bias
        grouped = ranked if config.num_groups == 1 else self._of_best_groups(ranked)
        chosen = grouped.topk(config.num_active, dim=-1).indices  # best first: they add up so
        weights = (ranked if config.bias == "weights" else scores).gather(1, chosen)
        if config.normalise:  # the least number only matters where all scores vanish
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = weights * config.scaling
        if config.sum_in_float32:
            return weights, chosen
        order = chosen.argsort(-1)  # in which their outputs are added
        return weights.gather(1, order).to(x.dtype), chosen.gather(1, order)

    def scores(self, x: Tensor) -> Tensor:
        """Returns the scores (N, E) float32 of all experts."""
        if self.config.router_in_float32:
            logits = F.linear(x.float(), self.weight.float())
        else:
            logits = F.linear(x, self.weight)
        if self.config.score == "sigmoid":
            return logits.float().sigmoid()
        return logits.softmax(-1, dtype=torch.float32)

    def _of_best_groups(self, scores: Tensor) -> Tensor:
        """Returns scores (N, E), -inf outside of each token's best groups."""
        groups = scores.unflatten(1, (self.config.num_groups, -1))
        ranks = groups.topk(2, dim=-1).values.sum(-1)
        best = ranks.topk(self.config.num_active_groups, dim=-1).indices
        closed = torch.ones_like(ranks, dtype=torch.bool).scatter(1, best, value=False)
        return groups.masked_fill(closed[..., None], -torch.inf).flatten(1)


class Experts(nn.Module):
    """The gated feed-forward layers of all experts, each a slice of one tensor."""

    def __init__(self, config: ExpertsConfig, width: int) -> None:
        super().__init__()
        count, inner = config.num_experts, config.intermediate_size
        self.gate_up = _parameter(count, 2 * inner, width)
        self.down = _parameter(count, width, inner)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Returns what tokens x (N, d) become in their experts (N, k) int64, (N, k, d)."""
        if has_grouped_product(self.gate_up) and has_grouped_product(self.down):
            return self.sorted(x, chosen)
        return self.batched(x, chosen)

    def sorted(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Returns the same from one product over the tokens of one expert after the other."""
        found = chosen.flatten()
        order = found.argsort(stable=True)
        numbers = torch.arange(len(self.down), device=x.device)
        ends = torch.searchsorted(found[order], numbers, right=True, out_int32=True)
        rows = x[order // chosen.shape[1]]
        product = torch.ops.dllm.grouped_product if torch.compiler.is_compiling() else _product
        out = product(_between(product(rows, self.gate_up, ends)), self.down, ends)
        return torch.empty_like(out).index_copy_(0, order, out).view(*chosen.shape, -1)

    def batched(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Returns the same from all tokens in all experts, of which those not chosen are dropped.

        The shapes depend on nothing that only the device knows.
        """
        parts = []
        for rows, at in zip(x.split(_BATCHED_ROWS), chosen.split(_BATCHED_ROWS), strict=True):
            everywhere = _between(rows @ self.gate_up.mT) @ self.down.mT  # (E, n, d)
            index = at[..., None].expand(-1, -1, x.shape[1])
            parts.append(everywhere.transpose(0, 1).gather(1, index))
        return torch.cat(parts)


def has_grouped_product(weight: Tensor) -> bool:
    """Whether torch multiplies by a slice (E, out, in) for each group of rows, without waiting.

    On older GPUs torch has a substitute that asks the device for the sizes of the groups.
    """
    if not hasattr(F, "grouped_mm"):
        return False
    aligned = weight.shape[1] * weight.itemsize % _ALIGNED == 0
    aligned = aligned and weight.shape[2] * weight.itemsize % _ALIGNED == 0
    if weight.device.type == "cuda":
        new = torch.cuda.get_device_capability(weight.device) >= (9, 0)
        return new and aligned and weight.dtype == torch.bfloat16
    if weight.device.type == "cpu":
        narrow = weight.dtype in (torch.bfloat16, torch.float16)
        return weight.dtype == torch.float32 or (narrow and aligned)
    return False


def _product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Returns rows (n, in) times the slice of weight (E, out, in) of their group, (n, out)."""
    return F.grouped_mm(rows, weight.mT, offs=ends)


# Compilers are told that torch's own takes bfloat16 alone, though CPUs multiply others too; so they
# are shown an operation of our own.
_LIBRARY = torch.library.Library("dllm", "FRAGMENT")
_LIBRARY.define("grouped_product(Tensor rows, Tensor weight, Tensor ends) -> Tensor")
_LIBRARY.impl("grouped_product", _product, "CompositeExplicitAutograd")


@torch.library.register_fake("dllm::grouped_product", lib=_LIBRARY)
def _shape(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    del ends
    return rows.new_empty(rows.shape[0], weight.shape[1])


def added_up(outputs: Tensor, weights: Tensor, wide: bool) -> Tensor:
    """Returns the weighed sum (N, d) of outputs (N, k, d), with weights (N, k).

    `wide` adds in float32. Otherwise each sum is rounded, in the order of the experts' numbers, as
    code that goes from expert to expert has it.
    """
    if wide:
        return (outputs.float() * weights[..., None]).sum(1).to(outputs.dtype)
    return reduce(torch.add, (outputs * weights[..., None]).unbind(1))


def _between(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * shape[-1] ** -0.5)
