"""The most probable filling of a canvas that is in its rows' languages (arXiv 2505.23061)."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm.constraints.engine import Segment, Tables


def best_classes(tables: Tables, segment: Segment, scores: Tensor) -> Tensor:
    """Returns the classes (B, W) int64 of the accepted filling with the largest sum of scores.

    `scores` (B, W, K) are those of the best token of each class. Columns that hold a token have
    any class. Of equal fillings, one that is the same in any batch.
    """
    arrows, classes, rows = tables.labels
    sources = torch.cat([tables.sources[arrows], tables.states])
    targets, numbers = tables.targets[arrows], torch.arange(len(sources)).to(tables.device)
    at, chosen = segment.entry.log(), []
    for column, (follow, jumps) in enumerate(zip(segment.follow, segment.jumps, strict=True)):
        taken = at + jumps.log()  # -inf where a token is there already
        label = taken[sources[: len(arrows)]] + scores[rows, column, classes].to(at.dtype)
        ways = torch.cat([label, at.masked_fill(jumps > 0, -torch.inf)])
        into = torch.cat([targets, follow])
        at = torch.full_like(at, -torch.inf).scatter_reduce_(0, into, ways, "amax")
        best = torch.where((ways == at[into]) & (ways > -torch.inf), numbers, len(numbers) - 1)
        none = torch.full_like(tables.states, len(numbers) - 1)
        chosen.append(none.scatter_reduce_(0, into, best, "amin"))
    state = _best_state(tables, at + segment.end.log())
    found = []
    labels = torch.cat([classes, torch.zeros_like(tables.states)])
    for pointers in reversed(chosen):
        way = pointers[state]
        found.append(labels[way])
        state = sources[way]
    return torch.stack(found[::-1], 1)


def best_tokens(tables: Tables, logits: Tensor, classes: Tensor) -> Tensor:
    """Returns the most probable token of each class (B, w) by logits (B, w, V), (B, w) int64."""
    each = tables.classes[tables.language_of][:, None]
    return logits.masked_fill(each != classes[..., None], -torch.inf).argmax(-1)


def class_scores(tables: Tables, logits: Tensor) -> Tensor:
    """Returns the largest logit of each class, (B, w, K), from logits (B, w, V)."""
    each = tables.classes[tables.language_of][:, None].expand_as(logits)
    empty = logits.new_full((*logits.shape[:2], tables.num_classes), -torch.inf)
    return empty.scatter_reduce_(-1, each, logits, "amax")


def _best_state(tables: Tables, score: Tensor) -> Tensor:
    """Returns each row's best state by score (N,), (B,) int64; any for rows without states."""
    most = score.new_full((tables.num_rows,), -torch.inf)
    most = most.scatter_reduce_(0, tables.row_of, score, "amax")
    last = tables.num_states - 1
    first = torch.where(score == most[tables.row_of], tables.states, last)
    none = torch.full((tables.num_rows,), last, device=tables.device)
    return none.scatter_reduce_(0, tables.row_of, first, "amin")
