"""Classifier-free guidance: a model that runs every pass with and without the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dllm.models.config import Cost, ModelSpec, cost_of
from dllm.models.model import DenoisingModel
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore


@dataclass(frozen=True)
class GuidedModel:
    """Returns unconditional + (scale + 1) (conditional - unconditional) logits.

    One pass of twice the rows; in the second half every given token is masked (arXiv 2502.09992,
    ML-GSAI/LLaDA generate.py, where `scale` is cfg_scale).
    """

    model: DenoisingModel
    scale: float
    given: Tensor  # (B, C) bool: tokens that the unconditional half does not see

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self.model.tokenizer

    @property
    def defaults(self) -> Mapping[str, Any]:
        return self.model.defaults

    @property
    def supports_cache(self) -> bool:
        return self.model.supports_cache

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def cost(self) -> Cost | None:
        """The price of a pass of both halves."""
        cost = cost_of(self.model)
        return None if cost is None else cost.times(2)

    def new_store(self, num_rows: int, num_columns: int) -> KVStore:
        return self.model.new_store(2 * num_rows, num_columns)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        given = self.given.repeat_interleave(tokens.shape[0] // self.given.shape[0], 0)
        hidden = given.gather(1, plan.positions)
        blind = tokens.masked_fill(hidden, self.spec.mask_token_id)
        both = torch.arange(len(tokens), device=tokens.device).repeat(2)
        logits = self.model.forward(torch.cat([tokens, blind]), plan.of_rows(both), store)
        with_prompt, without = logits.chunk(2)
        return without + (self.scale + 1) * (with_prompt - without)
