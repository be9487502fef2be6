"""One pass over texts of which some tokens are masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dllm.decoding.memory_limits import NotEnoughMemoryError, ran_out
from dllm.models.config import ModelSpec
from dllm.models.guidance import GuidedModel
from dllm.models.model import DenoisingModel
from dllm.state.plan import StepPlan


@dataclass(frozen=True)
class MaskedRow:
    """A text in token ids; of those from `start` on, the masked ones are hidden."""

    tokens: tuple[int, ...]
    start: int
    masked: Tensor  # (n,) bool


@dataclass(frozen=True)
class Prediction:
    """What a pass says of the columns from each row's start on."""

    logits: Tensor  # (B, W, V) float32, or float64 of a model in float64
    target: Tensor  # (B, W) int64 tokens that stand there
    masked: Tensor  # (B, W) bool; False where a row is shorter


def predict(
    model: DenoisingModel, rows: Sequence[MaskedRow], guidance_scale: float = 0.0
) -> Prediction:
    """Returns one pass's logits; raises NotEnoughMemoryError when the rows do not fit.

    With guidance the unconditional half does not see the columns before `start`.
    """
    device, spec = model.device, model.spec
    tokens = _padded([torch.tensor(row.tokens) for row in rows], spec.pad_token_id).to(device)
    hidden = _padded([torch.cat([_shown(row), row.masked]) for row in rows], False).to(device)
    masked = _padded([row.masked for row in rows], False).to(device)
    start = torch.tensor([row.start for row in rows], device=device)[:, None]
    length = torch.tensor([len(row.tokens) for row in rows], device=device)
    columns = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    wanted = (start + torch.arange(masked.shape[1], device=device)).clamp(max=tokens.shape[1] - 1)
    if guidance_scale > 0:
        model = GuidedModel(model, guidance_scale, given=columns < start)
    plan = StepPlan(
        kind="step",
        columns=columns,
        head=(wanted - spec.logit_shift).clamp(min=0),
        num_keys=tokens.shape[1],
        attend=_visible(columns, length, spec),
    )
    try:
        with torch.inference_mode():
            fed = tokens.masked_fill(hidden, spec.mask_token_id)
            logits = model.forward(fed, plan, None)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return Prediction(wide, tokens.gather(1, wanted), masked)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise NotEnoughMemoryError(
            f"memory ran out for {len(rows)} row(s) of {tokens.shape[1]} tokens: lower batch_size"
        ) from error


def _shown(row: MaskedRow) -> Tensor:
    return torch.zeros(row.start, dtype=torch.bool)


def _padded(parts: Sequence[Tensor], value: float) -> Tensor:
    return pad_sequence(list(parts), batch_first=True, padding_value=value)


def _visible(columns: Tensor, length: Tensor, spec: ModelSpec) -> Tensor | None:
    """Returns which keys each column sees, (B, 1 or Q, K) bool; None if all."""
    width = columns.shape[1]
    if spec.attention == "full" and bool((length == width).all()):
        return None
    keys = torch.arange(width, device=columns.device)
    real = keys < length[:, None, None]
    if spec.attention == "full":
        return real
    block = spec.block_length if spec.attention == "block_causal" else 1
    assert block is not None
    return real & (keys // block <= columns[..., None] // block)
