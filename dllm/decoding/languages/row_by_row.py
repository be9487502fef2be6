"""Rows that must be texts of a grammar as it is: asked about on the host, one row by the other.

Which tokens a column may hold is not known beforehand, as it is of languages with automata: a
token is proposed, asked about, and barred at its column if it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm.constraints.context_free.row import FreeRow
from dllm.constraints.language import OPEN
from dllm.constraints.prefix import PrefixRow
from dllm.decoding.languages.held import HeldRows, HeldWindow
from dllm.decoding.languages.one_row import MAX_REJECTED, Outcome, Proposal, Turn, take
from dllm.state.candidates import Candidates
from dllm.state.canvas import Canvas
from dllm.state.progress import Progress
from dllm.state.window import Decision, Window

Barred = dict[int, set[int]]  # tokens, by canvas column


@dataclass(frozen=True, eq=False)
class GrammarRow:
    """What one row must be: a text of a grammar in its columns from `start` to `stop`."""

    language: FreeRow
    start: int
    stop: int
    prefix: PrefixRow | None = None  # says what may come next, where that is asked for


@dataclass
class RowByRow:
    """The grammars of all prompts, and the tokens that their rows were refused."""

    rows: dict[int, GrammarRow | None]  # of each prompt
    others: HeldRows | None = None  # the languages of rows without a grammar
    _seated: tuple[int, ...] = ()
    _barred: dict[int, Barred] = field(default_factory=dict)  # by prompt

    def enter(self, canvas: Canvas, progress: Progress, prompts: tuple[int, ...]) -> None:
        """Notes which prompts are at the seats."""
        self._seated = prompts
        if self.others is not None:
            self.others.enter(canvas, progress, prompts)

    def holds(self, prompt: int) -> bool:
        """Whether the row of a prompt must be in a language."""
        other = self.others is not None and self.others.holds(prompt)
        return self.rows[prompt] is not None or other

    def adopt(self, prompt: int, alone: RowByRow) -> None:
        """Takes the grammar of the only row of another call, for a prompt that enters late."""
        self.rows[prompt] = alone.rows[0]

    def sets(self, canvas: Canvas, spare: bool = False) -> HeldWindow | None:
        """Returns what was refused so far; None: no row at the seats has a language."""
        others = None if self.others is None else self.others.sets(canvas, spare)
        rows = [self.rows[prompt] for prompt in self._seated]
        if not any(rows):
            return others
        barred = [self._barred.setdefault(prompt, {}) for prompt in self._seated]
        return AskedWindow(canvas, rows, barred, others)


@dataclass(frozen=True, eq=False)
class AskedWindow:
    """A window whose rows are asked about token by token."""

    canvas: Canvas
    rows: Sequence[GrammarRow | None]  # at the seats
    barred: Sequence[Barred]  # at the seats; written by `settle`
    others: HeldWindow | None

    def held(
        self, logits: Tensor, places: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Returns logits (B, w, V) in a dtype, with -inf for tokens that were refused."""
        logits = logits.to(dtype)
        if self.others is not None:
            logits = self.others.held(logits, places, dtype)
        listed = [
            (seat, column, token)
            for seat, columns in enumerate(self.barred)
            for column, tokens in columns.items()
            for token in tokens
        ]
        logits = self._only_next(logits, places)
        if not listed:
            return logits
        seat, column, token = torch.tensor(listed, device=logits.device).T
        here = self._is_at(seat, column, places)
        place = here.int().argmax(1)
        value = logits[seat, place, token].masked_fill(here.any(1), -torch.inf)
        return logits.index_put((seat, place, token), value)

    def _only_next(self, logits: Tensor, places: Tensor | None) -> Tensor:
        """Returns logits (B, w, V) with -inf for what a prefix engine does not let come next."""
        if not self._next:
            return logits
        seats, columns, allowed = zip(*self._next, strict=True)
        seat, column = torch.tensor([seats, columns], device=logits.device)
        barred = ~torch.from_numpy(np.stack(allowed)).to(logits.device)
        barred[:, self.canvas.layout.mask_token_id] = False
        refused = self._is_at(seat, column, places)[..., None] & barred[:, None]
        return logits.index_copy(0, seat, logits[seat].masked_fill(refused, -torch.inf))

    @cached_property
    def _next(self) -> list[tuple[int, int, NDArray[np.bool_]]]:
        """Seat and first masked column of rows with a prefix engine, and what may come there."""
        canvas = self.canvas
        found, tokens = [], canvas.tokens.where(~canvas.masked, OPEN).tolist()
        for seat, row in enumerate(self.rows):
            if row is None or row.prefix is None:
                continue
            own = tokens[seat][row.start : row.stop]
            if OPEN in own:
                place = own.index(OPEN)
                allowed = row.prefix.allowed(own[:place])
                if allowed is not None:
                    found.append((seat, row.start + place, allowed))
        return found

    def _is_at(self, seat: Tensor, column: Tensor, places: Tensor | None) -> Tensor:
        """Returns which logits of some rows (n,) are those of a column of each, (n, w) bool."""
        own = self.canvas.columns()
        own = own if places is None else own.gather(1, places)
        return own[seat] == column[:, None]

    def chosen(self, candidates: Candidates, logits: Tensor) -> Candidates:
        """Returns the candidates as they are, of rows without a grammar with others' tokens."""
        if self.others is None:
            return candidates
        return self.others.chosen(candidates, logits)

    def settle(
        self, window: Window, decision: Decision, candidates: Candidates
    ) -> tuple[Window, Decision]:
        """Returns a decision with what each row accepted, and what it wrote in other's place."""
        if self.others is not None:
            window, decision = self.others.settle(window, decision, candidates)
        step = _Step(self.canvas, window, decision, candidates)
        ours = torch.tensor([row is not None for row in self.rows], device=window.columns.device)
        tokens = window.tokens.tolist()
        counts = [[0, 0, 0] for _ in self.rows]
        for seat, row in enumerate(self.rows):
            if row is None or not step.proposals[seat]:
                continue
            outcome = take(step.turn(seat, row))
            counts[seat] = [outcome.rejected, outcome.undecided, outcome.rewritten]
            self._note(seat, row, outcome)
            tokens[seat] = step.after(seat, row, outcome)
        after = torch.tensor(tokens, device=ours.device)
        changed, was_masked = after != window.tokens, window.tokens == step.mask
        commit = torch.where(ours[:, None], changed & was_masked, decision.commit)
        edit = torch.where(ours[:, None], changed & ~was_masked, _or_none(decision.edit, changed))
        proposed = candidates.token if decision.tokens is None else decision.tokens
        return window, replace(
            decision,
            commit=commit,
            edit=edit,
            tokens=torch.where(ours[:, None], after, proposed),
            tally=torch.tensor(counts, device=ours.device),
        )

    def _note(self, seat: int, row: GrammarRow, outcome: Outcome) -> None:
        """Keeps what a row refused, as long as nothing of it is unwritten."""
        held = self.barred[seat]
        if outcome.rewritten:
            held.clear()
        for column, tokens in outcome.barred.items():
            held.setdefault(column + row.start, set()).update(tokens)
        for column in [one for one in held if outcome.tokens[one - row.start] != OPEN]:
            del held[column]


def _or_none(edit: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if edit is None else edit


class _Step:
    """What the host reads of a canvas and a decision, once for all rows."""

    def __init__(
        self, canvas: Canvas, window: Window, decision: Decision, candidates: Candidates
    ) -> None:
        self.candidates, self.mask = candidates, canvas.layout.mask_token_id
        self.columns = window.columns.tolist()
        self._tokens = canvas.tokens.where(~canvas.masked, OPEN).tolist()
        proposed = candidates.token if decision.tokens is None else decision.tokens
        commit = decision.commit & window.masked & window.active[:, None]
        self.proposals = _proposals(window.columns, proposed, candidates.confidence, commit)
        # What may be written anew: of the window, from the row's block on.
        free = ~canvas.fixed & ~canvas.masked & (canvas.numbers >= canvas.block_start[:, None])
        self._free = free.gather(1, window.columns).tolist()
        confidence = canvas.commit_confidence.gather(1, window.columns)
        self._confidence = confidence.nan_to_num(0.0).tolist()
        end = canvas.block_end if decision.block_end is None else decision.block_end
        self._blocks = torch.stack([canvas.block_start, end], 1).tolist()
        self._places = None if candidates.places is None else candidates.places.tolist()

    def turn(self, seat: int, row: GrammarRow) -> Turn:
        """Returns what a row is asked, with columns counted from its language's first."""
        start, stop = row.start, row.stop
        columns = enumerate(self.columns[seat])
        inside = {place: one - start for place, one in columns if start <= one < stop}
        written = {
            column: self._confidence[seat][place]
            for place, column in inside.items()
            if self._free[seat][place]
        }
        first, last = (min(max(edge, start), stop) - start for edge in self._blocks[seat])
        places = {column: place for place, column in inside.items()}
        return Turn(
            language=row.language,
            tokens=self._tokens[seat][start:stop],
            proposals=[
                replace(one, column=one.column - start)
                for one in self.proposals[seat]
                if start <= one.column < stop
            ],
            ranked=lambda column: self._ranked(seat, places[column]),
            written=written,
            block=(first, last),
        )

    def after(self, seat: int, row: GrammarRow, outcome: Outcome) -> list[int]:
        """Returns what a row's window holds then; outside of its language, what is proposed."""
        proposed = {one.column: one.token for one in self.proposals[seat]}
        found = []
        for column in self.columns[seat]:
            inside = row.start <= column < row.stop
            token = self._tokens[seat][column]
            token = outcome.tokens[column - row.start] if inside else proposed.get(column, token)
            found.append(self.mask if token == OPEN else token)
        return found

    def _ranked(self, seat: int, place: int) -> list[int]:
        """Returns the most probable tokens of a column, but for the mask."""
        at = place if self._places is None else self._places[seat].index(place)
        logits = self.candidates.logits[seat, at]
        values, tokens = logits.topk(min(MAX_REJECTED + 1, len(logits)))
        possible = zip(values.tolist(), tokens.tolist(), strict=True)
        return [one for value, one in possible if value > -torch.inf and one != self.mask]


def _proposals(
    columns: Tensor, tokens: Tensor, confidence: Tensor, commit: Tensor
) -> list[list[Proposal]]:
    """Returns what each row commits, the surest first."""
    found: list[list[Proposal]] = []
    wide = zip(columns.tolist(), tokens.tolist(), confidence.tolist(), commit.tolist(), strict=True)
    for row in wide:
        proposals = [
            Proposal(column, token, sure)
            for column, token, sure, held in zip(*row, strict=True)
            if held
        ]
        found.append(sorted(proposals, key=lambda one: -one.confidence))
    return found
