"""DAEDAL: a length that the model is sure to end in, and more room where it hesitates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.options import CountOrNone, Probability
from dllm.schedulers.base import Candidates, Decision, Setup, State, View, best
from dllm.schedulers.gap import Growing, confidence_in_end, rewritten, with_masks


@dataclass(frozen=True)
class Daedal(Growing):
    """Adds masks until the end is expected, then decodes, and opens room at the least sure mask.

    First forwards commit nothing: while the confidence in an end is < `enough`, `step` masks come
    at the end; then `spare` more. From there on, while that confidence is < `sure`, the least sure
    mask of the span becomes `step` masks if its confidence is < `hesitation` and it was not
    committed. Forwards of the first kind count as any other.
    """

    enough: Probability = 0.5  # compared with < (eos_confidence_threshold)
    spare: CountOrNone = 16  # masks, when the length is found
    sure: Probability = 0.9  # compared with < (expand_eos_confidence_threshold)
    hesitation: Probability = 0.1  # compared with < (low_conf_threshold)

    may_skip = True  # while it looks for a length
    source = "arXiv 2508.00819; Li-Jinsong/DAEDAL models/LLaDA_DAEDAL.py"
    statistic = "confidence; the probability of an end where one is expected"
    published = (
        "as accurate as the best fixed length, or more, with fewer columns that hold nothing: "
        "GSM8K, MATH500, MBPP, HumanEval (authors' abstract)"
    )

    def revision_limit(self, block_length: int) -> int:
        # Forwards that look for the length add a mask, others fill one, of at most so many.
        return 2 * block_length + 2

    def start(self, setup: Setup) -> State:
        none = torch.zeros(setup.num_rows, dtype=torch.int64, device=setup.device)
        return {"at": none, "found": none.bool()}

    def select(self, candidates: Candidates, view: View) -> Decision:
        assert view.gap is not None
        assert view.room is not None
        found = view.state["found"]
        end, free = confidence_in_end(candidates, view), view.room - view.gap
        chosen = self.chosen(candidates, view) & found[:, None]
        filled = torch.where(chosen, candidates.token, view.tokens)
        short = (end < self.enough) & (free > 0)
        first = torch.where(short, self.step, self.spare).minimum(free)
        least = self._least_sure(candidates, chosen, view)
        opens = least.any(1) & (end < self.sure)
        count = torch.where(found, (self.step - 1) * opens, first).minimum(free)
        slot = torch.where(least, view.offset, view.gap[:, None]).amin(1)
        before = torch.where(found, slot, view.gap)
        after = with_masks(filled, before, count, view)
        gap = view.gap + count
        at = torch.where(found, self.moved_on(after, gap, view), view.state["at"])
        return rewritten(after, gap, {"at": at, "found": found | ~short}, view)

    def _least_sure(self, candidates: Candidates, chosen: Tensor, view: View) -> Tensor:
        """Returns the mask of the span that may become several, if any, (B, W) bool."""
        open_ = view.masked & self.within(view)
        least = best(-candidates.confidence, open_)
        return least & (candidates.confidence < self.hesitation) & ~chosen
