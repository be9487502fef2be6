"""The contract of every scheduler: what to write into the canvas after a forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm.models.config import ModelSpec
from dllm.registry import Part
from dllm.state.candidates import Candidates, ConfidenceSource, best, rank, ranking
from dllm.state.carried import Replaced, State
from dllm.state.variants import Variants
from dllm.state.window import Decision, View

# With the messages, so that a method has its whole contract from here.
__all__ = ["Candidates", "ConfidenceSource", "Decision", "ModelSpec", "Needs", "Scheduler"]
__all__ += ["Replaced", "Setup", "State", "Variants", "View", "best", "rank", "ranking"]

Build = Callable[[Mapping[str, Any]], "Scheduler"]  # what a registry does


@dataclass(frozen=True)
class Setup:
    """Sizes, dtype and device that are known before the first step."""

    num_rows: int  # B
    width: int  # W: columns of the window that the scheduler sees
    num_slots: int  # the most of any row
    block_length: int
    vocab_size: int
    dtype: torch.dtype  # of the statistics
    device: torch.device


@dataclass(frozen=True)
class Needs:
    """Wishes of a scheduler besides the logits of the block."""

    whole_row: bool = False  # sees the whole generated region, not only the window
    window: int = 0  # columns from the block's start that it may commit; 0: the block
    shadow: bool = False  # every column predicted a second time without itself (WINO)
    num_variants: int = 1  # rows of a forward pass for each row of the batch
    shortens: bool = False  # cuts rows off
    whole_block: bool = False  # logits of the window's committed columns too
    committed: bool = False  # logits of committed columns too, where a pass feeds them anyway
    distributions: bool = False  # reads `Candidates.logits` of all columns, by their place
    some_distributions: bool = False  # reads those of the columns in `Candidates.places`
    room: int = 0  # tokens that a row's gap may grow to; 0: rows keep their length
    begin: int = 0  # masks that the gap begins with, of those that it has; 0: all of them

    @property
    def reads_logits(self) -> bool:
        """Whether logits themselves are read, not only the statistics of candidates."""
        read = self.distributions or self.some_distributions
        return read or self.shadow or self.num_variants > 1

    def width(self, num_slots: int, block_length: int) -> int:
        """Returns the columns of the window that the scheduler sees.

        More than the slots, since a row's first block may begin before them and the last window
        end after them.
        """
        window = max(self.window, block_length)
        return num_slots + block_length + window if self.whole_row else window

    def union(self, other: Needs) -> Needs:
        """Returns what serves both."""
        return Needs(*map(max, vars(self).values(), vars(other).values()))


@dataclass(frozen=True)
class Scheduler(Part, ABC):
    """Chooses the columns to commit; rows are decided independently and nothing is written.

    A subclass implements `select` on tensors without host synchronisation. `decide` holds the
    contract: only masked columns are committed, and at least one in every row that has any; only
    a method that `can_revise` masks or edits what was committed, only in the block, and only for
    `revision_limit` steps a block.
    """

    source: ClassVar[str]  # paper and code that the rule is from
    statistic: ClassVar[str] = "confidence"  # what of the logits it reads, for the documentation
    published: ClassVar[str] = ""  # figures of the authors, for the documentation
    anywhere: ClassVar[bool] = False  # commits in any block of the row, for the documentation
    confidence: ClassVar[ConfidenceSource] = "raw"  # distribution that its authors read
    moves_tokens: ClassVar[bool] = False  # inserts and deletes: columns change that it did not read
    without_mask: ClassVar[bool] = False  # the mask token has no part in that distribution
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # published settings: "name@preset"
    constant_needs: ClassVar[Needs] = Needs()  # where no option changes them

    @property
    def can_revise(self) -> bool:
        """Whether the method masks or edits committed tokens of the block."""
        return False

    @property
    def plans_ahead(self) -> bool:
        """Whether the method knows what the next step commits before it sees the logits."""
        return False

    @property
    def may_skip(self) -> bool:
        """Whether a step may commit nothing in a row that has masks."""
        return False

    @property
    def never_waits(self) -> bool:
        """Whether `select` itself commits a column of every row that has one to commit."""
        return False

    @property
    def reads(self) -> ConfidenceSource:
        """The distribution that the confidence is read from unless the user says otherwise."""
        return self.confidence

    @property
    def stateless(self) -> bool:
        """Whether a decision depends on the candidates and the view alone."""
        return type(self).start is Scheduler.start

    @abstractmethod
    def select(self, candidates: Candidates, view: View) -> Decision:
        """Returns which columns to commit; columns that are not masked are ignored."""

    def allowed(self, logits: Tensor, view: View) -> Tensor:
        """Returns logits (B, w, V) without tokens that a row whose gap grows cannot have now."""
        return logits

    def score(self, candidates: Candidates) -> Tensor:
        """Returns what ranks the columns, (B, W), larger is committed sooner."""
        return candidates.confidence

    def needs(self, num_slots: int, block_length: int) -> Needs:
        """Returns what the scheduler asks for in rows of `num_slots` slots."""
        return self.constant_needs

    def start(self, setup: Setup) -> State:
        """Returns the state before the first step; every tensor has one entry a row."""
        return {}

    def appraise(self, candidates: Candidates, view: View, variants: Variants) -> Tensor:
        """Returns how good each variant is, (B, R); candidates and view have B * R rows."""
        raise NotImplementedError(f"{type(self).__name__} asked for variants it does not compare")

    def revision_limit(self, block_length: int) -> int:
        """Returns the schedule steps of a block after which nothing is revised any more."""
        return 2 * block_length + 1

    def decide(self, candidates: Candidates, view: View) -> Decision:
        """Returns the decision of `select` within the contract of every scheduler."""
        decision = self.select(candidates, view)
        if self.can_revise:
            decision = self._revise(decision, candidates, view)
        commit = decision.commit & view.masked
        if not (self.may_skip or self.never_waits):
            goes_on = commit.any(-1, keepdim=True)
            if decision.variants is not None:
                goes_on = goes_on | decision.variants.needed[:, None]
            commit = commit | (self._best(candidates, view) > goes_on)
        return replace(decision, commit=commit)

    def check(self, num_blocks: int, block_length: int) -> None:
        """Raises ValueError when the options do not fit rows of that many blocks."""

    def check_model(self, spec: ModelSpec) -> None:
        """Raises ValueError when the method cannot serve a model."""

    def token_ids(self) -> dict[str, tuple[int, ...]]:
        """Returns the token ids among the options, by option; a model must have them all."""
        return {}

    def with_options(self, options: Mapping[str, Any], build: Build) -> Scheduler:
        """Returns this scheduler with other options; `build` makes one from a mapping."""
        return build({**self.summary(), **options, "name": type(self)})

    def _check_steps(self, steps: int | None, num_blocks: int) -> None:
        """Raises ValueError when blocks do not get equal shares of `steps`, one at least."""
        if steps is not None and (steps < num_blocks or steps % num_blocks):
            raise ValueError(
                f"steps={steps} is the total and must be a positive multiple of the "
                f"{num_blocks} blocks"
            )

    def _best(self, candidates: Candidates, view: View) -> Tensor:
        """Returns the block's best masked column of each row, (B, W) bool."""
        return best(self.score(candidates), view.masked & view.block)

    def _revise(self, decision: Decision, candidates: Candidates, view: View) -> Decision:
        early = view.block_step < self.revision_limit(view.layout.block_length)
        allowed = view.committed & view.block & view.known & early[:, None]
        hold, remask, edit = decision.hold, decision.remask, decision.edit
        tokens = candidates.token if decision.tokens is None else decision.tokens
        return replace(
            decision,
            hold=None if hold is None else hold & early,
            remask=None if remask is None else remask & allowed,
            edit=None if edit is None else edit & allowed & (tokens != view.tokens),
        )
