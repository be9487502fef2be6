"""What one row of a grammar writes in a step: token by token, and what is done at a dead end.

As arXiv 2508.10111: of what a scheduler commits the surest first, each written if the row can
still be filled, else barred at its column. Beyond it, since here a row has so many slots and no
more: a block is left only if the slots behind it suffice, and where they do not, or no token is
accepted, the least sure tokens of the block give way to a filling that does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dllm.constraints.context_free.row import FreeRow
from dllm.constraints.language import OPEN
from dllm.output import GenerationOutput

MAX_REJECTED = 100  # tokens of a row in one step (the authors' max_resamples)


class UnfillableRowError(RuntimeError):
    """A row for which no filling was found, though there was one when its block began."""

    partial: GenerationOutput | None = None  # what was committed before


@dataclass(frozen=True)
class Proposal:
    """A token that a scheduler commits."""

    column: int
    token: int
    confidence: float


@dataclass(frozen=True)
class Turn:
    """A row before a step; columns are counted from its language's first one."""

    language: FreeRow
    tokens: Sequence[int]  # OPEN at masks
    proposals: Sequence[Proposal]  # the surest first
    ranked: Callable[[int], Sequence[int]]  # the tokens of a column, the most probable first
    written: dict[int, float]  # columns that the model wrote and may write anew: how sure it was
    block: tuple[int, int]  # the columns that must be full before the row goes on


@dataclass
class Outcome:
    """A row after a step."""

    tokens: list[int]
    barred: dict[int, set[int]] = field(default_factory=dict)  # tokens, by column
    rejected: int = 0  # tokens that were asked about in vain
    undecided: int = 0  # of them, those about which too much work was to be done
    rewritten: int = 0  # tokens of a shortest filling, which nobody proposed


def take(turn: Turn) -> Outcome:
    """Returns what a row writes; raises UnfillableRowError where nothing is found that fits."""
    outcome = Outcome(list(turn.tokens))
    sure = dict(turn.written)
    for proposal in turn.proposals:
        if _keeps(turn, outcome, proposal.column, proposal.token):
            sure[proposal.column] = proposal.confidence
    stuck = bool(turn.proposals) and len(sure) == len(turn.written)
    if stuck:
        stuck = not _writes_another(turn, outcome)
    if stuck or not _may_go_on(turn, outcome):
        _rewrite(turn, outcome, sure, stuck)
    return outcome


def _keeps(turn: Turn, outcome: Outcome, column: int, token: int) -> bool:
    """Writes a token if the row can be filled with it, else bars it."""
    before, outcome.tokens[column] = outcome.tokens[column], token
    answer = turn.language.completable(outcome.tokens)
    if answer:
        return True
    outcome.tokens[column] = before
    outcome.barred.setdefault(column, set()).add(token)
    outcome.rejected += 1
    outcome.undecided += answer is None
    return False


def _writes_another(turn: Turn, outcome: Outcome) -> bool:
    """Writes the most probable token that is accepted, at the surest column that has one."""
    for proposal in turn.proposals:
        for token in turn.ranked(proposal.column):
            if outcome.rejected >= MAX_REJECTED:
                return False
            tried = token in outcome.barred.get(proposal.column, ())
            if not tried and _keeps(turn, outcome, proposal.column, token):
                return True
    return False


def _may_go_on(turn: Turn, outcome: Outcome) -> bool:
    """Whether a row has masks left in its block, or those behind it suffice."""
    first, last = turn.block
    if OPEN in outcome.tokens[first:last] or OPEN not in outcome.tokens:
        return True
    return turn.language.complete(outcome.tokens) is not None


def _rewrite(turn: Turn, outcome: Outcome, sure: dict[int, float], stuck: bool) -> None:
    """Writes a part of a shortest filling: in the least sure columns, as few as will do.

    Where no token was accepted, in the surest column beside them, so that a step writes something.
    """
    order = sorted(sure, key=lambda column: (sure[column], -column))
    count = 0 if stuck else 1
    while True:
        freed = order[:count]
        tokens = [OPEN if at in freed else one for at, one in enumerate(outcome.tokens)]
        filled = turn.language.complete(tokens)
        if filled is not None:
            break
        if count >= len(order):
            raise UnfillableRowError(
                "no text of the grammar was found for the slots of a row, though there was one "
                "when its block began"
            )
        count = min(max(2 * count, 1), len(order))
    for column in [*freed, *([turn.proposals[0].column] if stuck else [])]:
        outcome.rewritten += outcome.tokens[column] != filled[column]
        outcome.tokens[column] = filled[column]
    if freed:
        outcome.barred.clear()
