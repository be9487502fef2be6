"""Models around another: any module that returns logits, and classifier-free guidance."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from dllm.models.config import ModelSpec
from dllm.models.cost import Cost, cost_of
from dllm.models.fields import NO_LIMIT
from dllm.models.model import DenoisingModel
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase

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
        """Where the module's parameters are; torch's default device when it has none."""
        parameters = self.module.parameters() if isinstance(self.module, nn.Module) else iter(())
        first = next(parameters, None)
        return torch.get_default_device() if first is None else first.device

    def new_store(self, num_rows: int, num_columns: int) -> KVStore:
        raise ValueError(
            f"{self.name!r} is a wrapped module, which feeds the whole canvas and keeps no keys "
            "and values: use cache='none'"
        )

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        if store is not None or plan.stored is not None or plan.num_keys != tokens.shape[1]:
            raise ValueError(
                f"{self.name!r} is a wrapped module and got a plan that feeds {tokens.shape[1]} of "
                f"{plan.num_keys} columns through a K/V store: use cache='none'"
            )
        arguments = {} if self.mask_style == "none" else {"attention_mask": self._mask(plan)}
        if plan.attention_mask is not None:
            self.check_padding()
        result = self.module(tokens, **arguments)
        logits = self._check(getattr(result, "logits", result), tokens)
        wanted = plan.logit_rows[..., None].expand(-1, -1, self.spec.vocab_size)
        return logits.gather(1, wanted.to(logits.device))

    def check_padding(self) -> None:
        """Raises ValueError if the module cannot be told which columns are padding."""
        if self.mask_style == "none":
            raise ValueError(
                f"{self.name!r} takes no attention_mask, so it cannot tell padding from text in a "
                "batch of different lengths: name an attention_mask parameter, or give prompts "
                "one at a time"
            )

    def _mask(self, plan: StepPlan) -> Tensor:
        """Returns the padding mask (B, L) bool, or the 4-D one that transformers adds to scores."""
        rows, width = plan.positions.shape
        visible = plan.attention_mask
        if visible is None:
            visible = torch.ones(rows, 1, width, dtype=torch.bool, device=plan.positions.device)
        if self.mask_style == "padding":
            return visible[:, -1]
        assert isinstance(self.module, nn.Module)
        dtype = cast("torch.dtype", self.module.dtype)
        # All queries see all real keys: without a 4-D mask a causal model would stay causal.
        mask = torch.zeros(rows, 1, width, width, dtype=dtype, device=visible.device)
        return mask.masked_fill(~visible[:, None], torch.finfo(dtype).min)

    def _check(self, logits: Any, tokens: Tensor) -> Tensor:
        expected = [*tokens.shape, self.spec.vocab_size]
        actual = type(logits).__name__
        if isinstance(logits, Tensor):
            if list(logits.shape) == expected and logits.is_floating_point():
                return logits
            actual = f"{list(logits.shape)} {logits.dtype}"
        raise ValueError(
            f"{self.name!r} returned {actual}; expected floating logits {expected}: rows, columns, "
            "vocabulary"
        )


def wrap(  # noqa: PLR0913 one argument for each thing that a configuration may lack
    module: Callable[..., Any],
    *,
    mask_token_id: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    vocab_size: int | None = None,
    max_length: int | None = None,
    logit_shift: Literal[0, 1] = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str = "wrapped",
) -> WrappedModel:
    """Returns a model around a callable that maps token ids (B, L) to logits (B, L, V).

    The result may be the logits or have them as `.logits`. Causal transformers models get a 4-D
    mask that makes them bidirectional; encoders such as ModernBERT, and other callables that name
    an `attention_mask`, get the padding mask (B, L) bool. What is not given is read from
    `module.config`, then from the tokenizer; without a `max_length` there is no limit.
    """
    known = _Known(getattr(module, "config", None), tokenizer)
    ends = known.get(eos_token_id, "eos_token_id")
    ends = tuple(ends) if isinstance(ends, list | tuple) else (ends,)
    pad = known.find(pad_token_id, "pad_token_id")
    longest = known.find(max_length, "max_position_embeddings")
    spec = ModelSpec(
        vocab_size=known.get(vocab_size, "vocab_size"),
        max_length=NO_LIMIT if longest is None else longest,
        mask_token_id=known.get(mask_token_id, "mask_token_id"),
        eos_token_ids=ends,
        # Padding is hidden from attention, so any token will do where none is named.
        pad_token_id=ends[0] if pad is None else pad,
        logit_shift=logit_shift,
    )
    return WrappedModel(module, spec, _mask_style(module, name), name, tokenizer)


@dataclass(frozen=True)
class _Known:
    config: Any  # of the wrapped module, if it has one
    tokenizer: PreTrainedTokenizerBase | None

    def find(self, value: Any, key: str) -> Any:
        """Returns the value, else the configuration's, else the tokenizer's; may be None."""
        for source in (self.config, self.tokenizer if key.endswith("token_id") else None):
            value = getattr(source, key, None) if value is None else value
        return value

    def get(self, value: Any, key: str) -> Any:
        """Returns the same, which must not be None nor an empty list."""
        known = self.find(value, key)
        if known is None or known == [] or known == ():
            raise ValueError(f"wrap() cannot tell the {key} from the module's config: give {key}=")
        return known


def _mask_style(module: Callable[..., Any], name: str) -> MaskStyle:
    """Returns what a module takes as `attention_mask`, refusing one that would decode wrongly."""
    if isinstance(module, nn.Module) and module.training:
        raise ValueError(
            f"{name!r} is in training mode, so dropout is on: call module.eval() first"
        )
    # Looked up, not imported: the class takes two seconds, and none of its models is without it.
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is not None and isinstance(module, modeling.PreTrainedModel):
        # An encoder is bidirectional by itself, and a 4-D mask would replace the windows of its
        # local layers (ModernBERT).
        causal = {part.is_causal for part in module.modules() if hasattr(part, "is_causal")}
        if causal == {False}:
            return "padding"
        kernel = cast("Any", module).config._attn_implementation
        if kernel not in ("sdpa", "eager"):
            raise ValueError(
                f"{name!r} uses attn_implementation={kernel!r}, which takes no 4-D mask; load it "
                "with attn_implementation='sdpa' or 'eager'"
            )
        return "additive"
    target = module.forward if isinstance(module, nn.Module) else module
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # a builtin without a signature
        return "none"
    return "padding" if "attention_mask" in parameters else "none"


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
