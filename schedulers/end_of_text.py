"""End-of-text prediction: the row is cut off where the text ends (Learn2PD's EoTP)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dllm.schedulers.base import Candidates, Decision, Needs, View, best
from dllm.schedulers.learn2pd import Learn2PD
from dllm.schedulers.wrapper import Wrapper


@dataclass(frozen=True)
class EndOfText(Wrapper):
    """Cuts the row off after the block's first committed end token; `inner` commits.

    `rule="predicted"` does not wait for one: as long as `inner` commits none, it cuts after the
    most confident end token that is predicted at a masked column of the row, or of the block with
    `scope="block"` (the authors' cached code). That column is still masked and may become
    something else. With `rule="accepted"` end tokens that were committed for the quota's sake do
    not count: only what Learn2PD's filter accepts in this step does, as in the authors' code.
    A row with given text after its prompt is never cut.
    """

    rule: Literal["decoded", "predicted", "accepted"] = "decoded"
    scope: Literal["row", "block"] = "row"  # of predicted end tokens

    source = (
        "arXiv 2509.25188 (decoded); ims-kdks/Learning-to-Parallel-Decoding "
        "llada/generate.py:generate_l2p_eot (predicted)"
    )
    statistic = "inner's; proposed end tokens and their confidence"

    def __post_init__(self) -> None:
        if self.inner.can_revise:
            raise ValueError(
                f"inner={self.inner.summary()['name']!r} may take back the end token that a row "
                "was cut at: end_of_text needs a scheduler that keeps what it commits"
            )
        if self.inner.needs(2, 1).num_variants > 1:
            raise ValueError(
                f"inner={self.inner.summary()['name']!r} compares variants of a row, which may "
                "stand where it was cut off: end_of_text needs a scheduler without them"
            )
        if self.rule == "accepted" and not isinstance(self.inner, Learn2PD):
            raise ValueError(
                f"inner={self.inner.summary()['name']!r} has no filter that accepts end tokens: "
                "rule='accepted' needs inner='learn2pd', rule='predicted' takes any"
            )

    def own_needs(self, num_slots: int, block_length: int) -> Needs:
        everywhere = self.rule != "decoded" and self.scope == "row"
        return Needs(whole_row=everywhere, shortens=True)

    def select(self, candidates: Candidates, view: View) -> Decision:
        decision = self.ask(candidates, view)
        ends = self._ends(decision, candidates, view)
        length = _after_first(ends, view)
        if self.rule != "decoded":
            predicted = _after_first(self._predicted(candidates, view), view)
            length = torch.where(ends.any(1), length, predicted)
        infilled = view.length - view.prompt_length > view.num_slots
        return replace(decision, length=torch.where(infilled, view.length, length))

    def _ends(self, decision: Decision, candidates: Candidates, view: View) -> Tensor:
        """Returns the block's columns (B, W) bool that end the text, whatever is predicted."""
        if isinstance(self.inner, Learn2PD) and self.rule == "accepted":
            block = torch.arange(view.layout.block_length, device=view.columns.device)
            index = view.first_of_block()[:, None] + block
            accepted = self.inner.accepted(candidates.at(index), view.at(index))
            accepted = torch.zeros_like(view.masked).scatter(1, index, accepted)
            return accepted & view.masked & view.is_end(candidates.token)
        written = candidates.token if decision.tokens is None else decision.tokens
        tokens = torch.where(decision.commit, written, view.tokens)
        return (decision.commit | view.committed) & view.block & view.is_end(tokens)

    def _predicted(self, candidates: Candidates, view: View) -> Tensor:
        """Returns each row's most confident masked column (B, W) bool that may end its text."""
        within = view.masked & view.block if self.scope == "block" else view.masked
        return best(candidates.confidence, within & view.is_end(candidates.token))


def _after_first(ends: Tensor, view: View) -> Tensor:
    """Returns the canvas column (B,) after the first of some columns (B, W), else the length."""
    first = ends.int().argmax(1, keepdim=True)
    after = view.columns.gather(1, first).squeeze(1) + 1
    return torch.where(ends.any(1), after, view.length)
