"""Making any module that returns logits usable, without caches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dllm.models.config import ModelSpec
from dllm.plan import StepPlan
from dllm.store import KVStore

MaskStyle = Literal["none", "padding", "additive"]


@dataclass(frozen=True)
class WrappedModel:
    """A foreign module that sees the whole canvas at every pass."""

    module: Callable[..., Any]
    spec: ModelSpec
    mask_style: MaskStyle  # what the module takes as `attention_mask`
    name: str = "wrapped"
    tokenizer: PreTrainedTokenizerBase | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    supports_cache: bool = False

    @property
    def device(self) -> torch.device:
        if isinstance(self.module, nn.Module):
            tensor = next(self.module.parameters(), None)
            if tensor is not None:
                return tensor.device
        return torch.device("cpu")

    def new_store(self, num_rows: int, num_columns: int) -> KVStore:
        raise ValueError(f"{self.name!r} is a wrapped module without a K/V store: use cache='none'")

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        logits = self._logits(tokens, plan)
        expected = (*tokens.shape, self.spec.vocab_size)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"{self.name!r} returned {shape}, expected logits of shape {list(expected)} "
                "(rows, columns, vocabulary)"
            )
        return logits.gather(1, plan.head[..., None].expand(-1, -1, expected[-1]))

    def _logits(self, tokens: Tensor, plan: StepPlan) -> Any:
        if self.mask_style == "none":
            if plan.attend is not None:
                raise ValueError(
                    f"{self.name!r} takes no attention_mask, so it cannot tell padding from text "
                    "in a batch of different lengths: pass prompts of one length, or one at a time"
                )
            result = self.module(tokens)
        else:
            result = self.module(tokens, attention_mask=self._mask(tokens, plan))
        return getattr(result, "logits", result)

    def _mask(self, tokens: Tensor, plan: StepPlan) -> Tensor:
        rows, width = tokens.shape
        visible = plan.attend
        if visible is None:
            visible = torch.ones(rows, 1, width, dtype=torch.bool, device=tokens.device)
        if self.mask_style == "padding":
            return visible[:, -1]
        assert isinstance(self.module, nn.Module)
        dtype = next(self.module.parameters()).dtype
        hidden = torch.zeros(rows, 1, width, width, dtype=dtype, device=tokens.device)
        return hidden.masked_fill(~visible[:, None], torch.finfo(dtype).min)


def wrap(
    module: Callable[..., Any],
    *,
    mask_token_id: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    vocab_size: int | None = None,
    max_length: int | None = None,
    logit_shift: Literal[0, 1] = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str = "wrapped",
) -> WrappedModel:
    """Returns a model around a callable that maps token ids (B, L) to logits (B, L, V).

    The result may be the logits or have them as `.logits`. transformers models get a 4-D mask
    that makes them bidirectional; other callables get the padding mask (B, L) bool if they take an
    `attention_mask`. What is not given is read from `module.config` and the tokenizer.
    """
    config = getattr(module, "config", None)

    def known(given: Any, key: str, what: str, fallback: Any = None) -> Any:
        for value in (given, getattr(config, key, None), fallback):
            if value is not None:
                return value
        raise ValueError(f"wrap() cannot tell the {what}: pass {key}=")

    mask = known(
        mask_token_id, "mask_token_id", "mask token", getattr(tokenizer, "mask_token_id", None)
    )
    ends = known(eos_token_id, "eos_token_id", "end token", getattr(tokenizer, "eos_token_id", ()))
    ends = (ends,) if isinstance(ends, int) else tuple(ends)
    pad = getattr(config, "pad_token_id", None)
    spec = ModelSpec(
        vocab_size=known(vocab_size, "vocab_size", "size of the vocabulary"),
        max_length=known(max_length, "max_position_embeddings", "length limit", 2**31 - 1),
        mask_token_id=mask,
        eos_token_ids=ends,
        pad_token_id=pad if pad is not None else ends[0] if ends else mask,
        logit_shift=logit_shift,
    )
    return WrappedModel(module, spec, _mask_style(module), name, tokenizer)


def _mask_style(module: Callable[..., Any]) -> MaskStyle:
    if isinstance(module, PreTrainedModel):
        return "additive"
    target = module.forward if isinstance(module, nn.Module) else module
    parameters = inspect.signature(target).parameters
    return "padding" if "attention_mask" in parameters else "none"
