"""One pre-norm transformer, configured into every hosted family, dense or of experts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dllm.models.config import NetworkConfig
from dllm.models.layers import Block, Fed, Memory, RMSNorm, Rotation, rows_of
from dllm.models.yarn import kept
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore


class Transformer(nn.Module):
    """The network of every hosted family; knows nothing of masks, blocks or schedulers."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_multiply_first)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    @property
    def layers(self) -> list[nn.Module]:
        """All layers that there are, in the order of their places in the K/V store."""
        return [*self.blocks]

    def forward(
        self, tokens: Tensor, plan: StepPlan | None = None, store: KVStore | None = None
    ) -> Tensor:
        """Returns logits (B, w, V) of the rows that `plan.logit_rows` names.

        `tokens` (B, Q) int64 are the tokens of `plan.positions`. Without a plan they stand at
        columns 0..Q-1, all see each other and all have logits.
        """
        if plan is None:
            columns = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            return self.logits(self.hidden(tokens, columns))
        places = plan.positions if plan.places is None else plan.places
        return self.logits(self.hidden(tokens, places, plan.attention_mask, plan, store))

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        plan: StepPlan | None = None,
        store: KVStore | None = None,
    ) -> Tensor:
        """Returns the last layer's normed states (B, Q, hidden_size), or (B, w, hidden_size).

        Those of all fed columns, or with a plan of the w that `plan.logit_rows` names.
        """
        adapted = plan is not None and plan.policy is not None and plan.policy.adapts
        fed = Fed(self.rotation(positions), mask, adapted=adapted)
        x, slots = self.embedding(tokens), None
        if store is not None and plan is not None and plan.stored is not None:
            slots = store.begin(plan.stored)
        last = len(self.blocks) - 1 if plan is not None and _narrows(plan) else None
        for layer, block in enumerate(self.blocks):
            memory = None
            if store is not None and plan is not None and slots is not None:
                memory = Memory(store, layer, plan, slots)
            if plan is not None and layer == last:
                fed = replace(fed, wanted=plan.logit_rows)
            x = block(x, fed, memory)
        if plan is not None and fed.wanted is None:
            x = rows_of(x, plan.logit_rows.to(x.device))
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the head's logits (..., V) of states (..., hidden_size)."""
        logits = self.head(hidden)
        return logits.float() if self.config.logits_in_float32 else logits

    def rotation(self, columns: Tensor) -> Rotation:
        """Returns the RoPE tables of positions (B, Q), in float32.

        Computed from the configuration at each pass: a stored table would have to survive
        initialisation without memory, where frequencies silently become garbage.
        """
        width, yarn = self.config.rotary_dim or self.config.head_dim, self.config.yarn
        exponents = torch.arange(0, width, 2, device=columns.device, dtype=torch.float32) / width
        periods = self.config.rope_theta**exponents
        frequencies = 1.0 / periods
        if yarn is not None:
            whole = kept(len(periods), self.config.rope_theta, yarn).to(columns.device)
            frequencies = 1.0 / (yarn.factor * periods) * (1 - whole) + frequencies * whole
        angles = columns[..., None].float() * frequencies
        cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
        if yarn is not None and yarn.magnitude != 1:
            cos, sin = cos * yarn.magnitude, sin * yarn.magnitude
        query = None
        if yarn is not None and yarn.query_beta:
            times = torch.floor(columns / yarn.original_length)
            query = (1 + yarn.query_beta * torch.log(1 + times))[..., None, None]
        return Rotation(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1), query)


def _narrows(plan: StepPlan) -> bool:
    """Whether the last layer goes on with the logits' rows alone, as `PassShape.narrows` says."""
    whole = plan.policy is not None and plan.policy.whole_layer
    return not whole and plan.logit_rows.shape[1] < plan.positions.shape[1]
