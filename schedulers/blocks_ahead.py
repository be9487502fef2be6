"""Blocks that are open besides the one a row is at: the window of every cross-block method."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.state.window import View


def window_of(blocks: int, num_slots: int, block_length: int) -> int:
    """Returns the columns of `blocks` blocks, or of as many as rows of `num_slots` slots reach."""
    return min(blocks, num_slots // block_length + 2) * block_length  # a partial one at either end


def decoded_fraction(view: View, blocks: int) -> Tensor:
    """Returns the decoded part of the next `blocks` blocks in the window, (B, n) float32.

    Block 0 is the one that the row is at. A block without slots counts as decoded.
    """
    member = _membership(view, blocks)  # (B, n, W)
    slots = (member & ~view.fixed[:, None]).sum(-1)
    open_slots = (member & (view.tokens == view.layout.mask_token_id)[:, None]).sum(-1)
    return 1 - open_slots / slots.clamp(min=1)


def open_columns(view: View, blocks: int, add_threshold: float) -> Tensor:
    """Returns the masked columns of all open blocks, (B, W) bool.

    A block opens once its predecessor is open and decoded to at least `add_threshold`
    (D2F pipelining, arXiv 2508.09192; hao-ai-lab/d3LLM).
    """
    before = F.pad(decoded_fraction(view, blocks)[:, :-1], (1, 0), value=1)
    opened = (before >= add_threshold).int().cumprod(1).bool()
    return view.masked & (_membership(view, blocks) & opened[..., None]).any(1)


def active_columns(view: View, blocks: int, active_threshold: float) -> Tensor:
    """Returns the columns of the first block with masks whose predecessors are decoded enough.

    (B, W) bool: the block in which a step must commit something.
    """
    fraction = decoded_fraction(view, blocks)
    before = F.pad(fraction[:, :-1], (1, 0), value=1)
    candidate = (before >= active_threshold) & (fraction < 1)
    first = candidate & (candidate.int().cumsum(1) == 1)
    return (_membership(view, blocks) & first[..., None]).any(1)


def _membership(view: View, blocks: int) -> Tensor:
    """Returns which columns of the window belong to each of the next blocks in it, (B, n, W)."""
    start = view.columns.gather(1, view.first_of_block()[:, None])
    index = (view.columns - start).div(view.layout.block_length, rounding_mode="floor")
    reached = -(-view.columns.shape[1] // view.layout.block_length)
    block = torch.arange(min(blocks, reached), device=index.device)[:, None]
    return (index[:, None] == block) & (view.columns < view.length[:, None])[:, None]
