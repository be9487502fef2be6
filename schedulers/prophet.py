"""Early commit (Prophet): once the answer is settled, everything is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.options import LARGEST, Count, CountOrNone, Range, TokenId
from dllm.schedulers.base import Candidates, Decision, Needs, Scheduler, View
from dllm.schedulers.fixed_quota import FixedQuota
from dllm.schedulers.wrapper import Wrapper

Gap = Annotated[float, Range(-LARGEST, LARGEST)]  # logits; a negative one is always passed


@dataclass(frozen=True)
class Prophet(Wrapper):
    """Commits all masks of the row at once when the answer's mean logit gap passes a threshold.

    The threshold falls from `high` to `mid` and `low` after a third and two thirds of the way. The
    gap between the two largest logits, before any temperature, is averaged over the answer region,
    decoded columns included; otherwise `inner` decides. Where the answer stands (`region`):

    `fixed`: `answer_length` columns from slot `answer_start` on, as the authors have it; they plant
    the words that lead to it (the setting `fixed` of `dllm.generate`). `marker` (ours, for open
    prompts): what follows the last place in the generated text where `marker` stands, a sequence
    of token ids such as those of `#### `. `rest` (ours): all masks of the row.

    `progress` counts forwards against `steps` (None: one for each slot), the first as `first_step`:
    0 in the paper, 1 in its code. `committed` measures the part of the slots that is filled: the
    same at one token a step, and right for inner schedulers that commit more.

    With a cache that feeds a part of the row, the answer must have logits in the pass, and masks
    that have none stay for a later one.
    """

    inner: Scheduler = field(default_factory=FixedQuota)
    high: Gap = 7.5  # logits, compared with >=
    mid: Gap = 5.0
    low: Gap = 2.5
    region: Literal["fixed", "marker", "rest"] = "rest"
    answer_start: CountOrNone = 0  # slot
    answer_length: Count = 5  # columns
    marker: tuple[TokenId, ...] = ()  # token ids
    progress: Literal["steps", "committed"] = "committed"
    first_step: CountOrNone = 0

    source = "arXiv 2508.19982; pixeli99/Prophet generate_earlyexit.py:generate"
    statistic = "gap of the two largest logits over the answer"
    anywhere = True
    published = (
        "LLaDA-8B-Instruct: GSM8K 77.1 -> 77.9 % at 1.63x fewer steps, MMLU 54.1 -> 54.0 % at "
        "2.34x (paper, table 1)"
    )
    presets = {  # paper, table 6
        "choice": {"high": 7.5, "mid": 5.0, "low": 2.5},
        "gsm8k": {"high": 8.0, "mid": 5.0, "low": 3.5},
        "gpqa": {"high": 8.0, "mid": 5.0, "low": 3.5},
        "code": {"high": 7.5, "mid": 5.0, "low": 4.5},
        "sudoku": {"high": 7.5, "mid": 5.0, "low": 2.5},
        "countdown": {"high": 7.5, "mid": 5.0, "low": 2.5},
        "authors_code": {"progress": "steps", "first_step": 1, "region": "fixed"},
    }

    def __post_init__(self) -> None:
        if self.region == "marker" and not self.marker:
            raise ValueError("region='marker' needs marker=(token ids,), the tokens to look for")

    def own_needs(self, num_slots: int, block_length: int) -> Needs:
        # Only the masks that are left have no committed column among them.
        return Needs(whole_row=True, committed=self.region != "rest")

    def token_ids(self) -> dict[str, tuple[int, ...]]:
        return {"marker": self.marker, **super().token_ids()}

    def select(self, candidates: Candidates, view: View) -> Decision:
        decision = self.ask(candidates, view)
        settled = self._settled(candidates, view)
        wide = settled[:, None]
        tokens, variants, hold = decision.tokens, decision.variants, decision.hold
        remask, edit = decision.remask, decision.edit
        if variants is not None:
            variants = replace(variants, needed=variants.needed & ~settled)
        return replace(
            decision,
            commit=torch.where(wide, view.masked, decision.commit),
            tokens=None if tokens is None else torch.where(wide, candidates.token, tokens),
            variants=variants,
            # The row ends here: nothing is taken back.
            remask=None if remask is None else remask & ~wide,
            edit=None if edit is None else edit & ~wide,
            hold=None if hold is None else hold & ~settled,
        )

    def _settled(self, candidates: Candidates, view: View) -> Tensor:
        """Returns whether the answer is settled, (B,) bool; it must have logits in this pass."""
        answer = self._answer(view)
        count = answer.sum(1)
        seen = (count > 0) & ~(answer & ~view.known).any(1)
        gap = torch.where(answer, candidates.gap, 0).sum(1) / count.clamp(min=1)
        done = self._progress(view)
        threshold = torch.where(done < 0.67, self.mid, self.low)
        threshold = torch.where(done < 0.33, self.high, threshold)
        return seen & (gap >= threshold)

    def _progress(self, view: View) -> Tensor:
        """Returns how much of each row's way is behind it, (B,) float."""
        if self.progress == "committed":
            left = (view.tokens == view.layout.mask_token_id) & ~view.fixed
            return 1 - left.sum(1) / view.num_slots.clamp(min=1)
        steps = _steps(self.inner) or view.num_slots.clamp(min=1)
        return (view.step + self.first_step) / steps

    def _answer(self, view: View) -> Tensor:
        """Returns the columns of the answer, (B, W) bool."""
        slots = (view.offset >= 0) & (view.columns < view.length[:, None])
        if self.region == "rest":
            return slots & (view.tokens == view.layout.mask_token_id) & ~view.fixed
        start = self.answer_start
        if self.region == "fixed":
            return slots & (view.offset >= start) & (view.offset < start + self.answer_length)
        after = self._after_marker(view, slots)
        inside = (view.offset >= after) & (view.offset < after + self.answer_length)
        return slots & inside & (after >= 0)

    def _after_marker(self, view: View, slots: Tensor) -> Tensor:
        """Returns the slot after the last marker, (B, 1) int64, -1 where there is none."""
        found = slots
        for place, token in enumerate(self.marker):  # a few, known to the host
            here = slots & (view.tokens == token)
            found = found & F.pad(here, (0, place))[:, place:]
        after = view.offset + len(self.marker)
        return torch.where(found, after, -1).amax(1, keepdim=True)


def _steps(scheduler: Scheduler) -> int | None:
    """Returns the steps that a scheduler, or the one that it asks, was told to take."""
    while isinstance(scheduler, Wrapper):
        scheduler = scheduler.inner
    return getattr(scheduler, "steps", None)
