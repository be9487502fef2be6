"""DreamOn: a gap grows where a token asks for room, and ends where the end token stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.options import Range, TokenId
from dllm.schedulers.base import (
    Candidates,
    Decision,
    ModelSpec,
    Needs,
    Scheduler,
    Setup,
    State,
    View,
    best,
)
from dllm.schedulers.gap import rewritten


@dataclass(frozen=True)
class DreamOn(Scheduler):
    """Commits one token a forward; the expand token becomes two masks, the end token deletes.

    For models that were taught both (DreamOn). A row has one gap, behind its beginning: the masks
    of an infilled text, or the answer. Where the end token is chosen, that mask goes and so do all
    masks behind it; what follows moves to the left. The gap grows to `room` tokens at most, or to
    as many as it began with, and by `expansions` in all; after that the expand token is not
    proposed. Positions are those of the text that is there, so no cache can follow.
    """

    algorithm: Literal["entropy", "maskgit_plus", "topk_margin"] = "entropy"
    room: Annotated[int, Range(1, 2**20)] = 64  # tokens of the gap (max_gen_len)
    # Masks that may be added, whatever was deleted since; None: as many as `room`.
    expansions: Annotated[int, Range(0, 2**20)] | None = None
    expand_token_id: TokenId | None = None  # None: the checkpoint's own

    can_revise = True
    moves_tokens = True
    may_skip = True
    source = "arXiv 2602.01326; DreamLM/DreamOn eval/generator.py"
    confidence = "tempered"

    def token_ids(self) -> dict[str, tuple[int, ...]]:
        given = self.expand_token_id
        return {"expand_token_id": () if given is None else (given,)}

    def needs(self, num_slots: int, block_length: int) -> Needs:
        return Needs(room=self.room)

    def revision_limit(self, block_length: int) -> int:
        return block_length + 2 * self._most + 1  # each mask added takes a forward, and is filled

    def check_model(self, spec: ModelSpec) -> None:
        if spec.attention != "full":
            raise ValueError(
                f"scheduler 'dreamon' moves text behind the gap, and attention {spec.attention!r} "
                "of this model goes by columns: it needs full attention, as Dream has"
            )
        if self.expand_token_id is None and spec.expand_token_id is None:
            raise ValueError(
                "scheduler 'dreamon' needs a model with an expand token, and this one's tokenizer "
                "has none: give expand_token_id, or decode at a fixed length with 'dream'"
            )

    def start(self, setup: Setup) -> State:
        return {"added": torch.zeros(setup.num_rows, dtype=torch.int64, device=setup.device)}

    def allowed(self, logits: Tensor, view: View) -> Tensor:
        assert view.gap is not None
        assert view.room is not None
        full = (view.gap >= view.room) | (view.state["added"] >= self._most)
        token = torch.arange(logits.shape[-1], device=full.device) == self._expand(view)
        return logits.masked_fill((full[:, None] & token)[:, None], -torch.inf)

    def score(self, candidates: Candidates) -> Tensor:
        if self.algorithm == "entropy":
            return -candidates.entropy
        return candidates.margin if self.algorithm == "topk_margin" else candidates.confidence

    def select(self, candidates: Candidates, view: View) -> Decision:
        one = best(self.score(candidates), view.masked)
        expands = one & (candidates.token == self._expand(view))
        goes = view.masked & (_ends(one, candidates.token, view).cumsum(1) > 0)
        tokens = torch.where(one, candidates.token, view.tokens)
        after, gap = _moved(tokens, goes, expands, view)
        return rewritten(after, gap, {"added": view.state["added"] + expands.sum(1)}, view)

    @property
    def _most(self) -> int:
        return self.room if self.expansions is None else self.expansions

    def _expand(self, view: View) -> int:
        own = view.layout.expand_token_id
        token = own if self.expand_token_id is None else self.expand_token_id
        return -1 if token is None else token  # no token: `check_model` has refused such a model


def _ends(one: Tensor, token: Tensor, view: View) -> Tensor:
    """Returns where the one column (B, W) bool is to hold the end token, (B, W) bool.

    The first of several: others, such as the end of a turn, are text.
    """
    ends = view.layout.eos_token_ids
    return one & (token == ends[0]) if ends else torch.zeros_like(one)


def _moved(tokens: Tensor, goes: Tensor, comes: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Returns the window (B, W) int64 once columns went and masks came, and its gap (B,) int64."""
    assert view.gap is not None
    assert view.room is not None
    width, slot = tokens.shape[1], view.offset
    used = (slot >= 0) & (slot < view.gap[:, None])
    more = comes.long() - goes.long()
    place = torch.arange(width, device=tokens.device) + more.cumsum(1) - more
    lost = place.new_full((), width)  # a column behind the window
    masks = torch.full_like(tokens, view.layout.mask_token_id)
    inside = (slot >= 0) & (slot < view.room[:, None])
    empty = F.pad(tokens.masked_fill(inside, view.layout.fill_token_id), (0, 1))
    first = torch.where(used & ~goes, place, lost)
    second = torch.where(comes, place + 1, lost)
    after = empty.scatter(1, first, torch.where(comes, masks, tokens)).scatter(1, second, masks)
    return after[:, :width], view.gap + more.sum(1)
