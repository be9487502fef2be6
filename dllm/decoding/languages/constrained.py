"""Rows that must be in a language: before tokens are proposed, and before they are written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from dllm.constraints.engine import OnDevice, Tables
from dllm.constraints.host import Host, OnHost, on_host
from dllm.constraints.lines import RowLanguage
from dllm.constraints.viterbi import best_classes, best_tokens, class_scores
from dllm.state.candidates import Candidates, rank
from dllm.state.canvas import Canvas
from dllm.state.progress import Progress
from dllm.state.window import Decision, Window

# Of a step's commits that exclude each other, the surest first; or, in their place, those of the
# most probable filling.
Joint = Literal["confidence", "map"]


@dataclass
class Constrained:
    """The languages of all prompts, and the tables of the rows that are decoded.

    Which tokens a column may hold is read off the canvas in every step, so that drafts, edits and
    columns that are masked again need nothing of their own. Kept are tables, until other prompts
    take their seats, and the state in which a row's window begins, until it enters a block.
    """

    rows: dict[int, RowLanguage | None]  # of each prompt
    device: torch.device
    joint: Joint = "confidence"
    _seated: tuple[int, ...] = ()
    _tables: Tables | None = None
    _host: Host | None = None  # where the host computes by itself
    _entry: Tensor = field(default_factory=lambda: torch.empty(0))  # (B,) int64
    _fresh: bool = True  # whether rows were seated for this pass

    def enter(self, canvas: Canvas, progress: Progress, prompts: tuple[int, ...]) -> None:
        """Reads the state in which the windows of rows begin, where rows entered a block.

        `prompts` are those at the seats.
        """
        self._fresh = prompts != self._seated
        if prompts != self._seated:
            seated = [self.rows[prompt] for prompt in prompts]
            self._tables = tables = Tables(seated, self.device) if any(seated) else None
            self._host = Host(tables, seated) if tables is not None and on_host(tables) else None
            self._seated = prompts
        elif not progress.entered:
            return
        if self._tables is not None:
            column = canvas.columns()[:, 0]
            passed = (column - self._tables.start).masked_fill(self._tables.free, 0)
            most = int(passed.clamp(min=0).max())  # the host waits, once a block
            self._entry = self._tables.states_at(canvas.tokens, column, most)

    def holds(self, prompt: int) -> bool:
        """Whether the row of a prompt must be in a language."""
        return self.rows[prompt] is not None

    def adopt(self, prompt: int, alone: Constrained) -> None:
        """Takes the language of the only row of another call, for a prompt that enters late."""
        self.rows[prompt] = alone.rows[0]

    def sets(self, canvas: Canvas, spare: bool = False) -> Sets | None:
        """Returns what each column of the window may hold; None: no row has a language.

        Where `spare`, nobody else reads the logits that will be held to it.
        """
        tables, columns = self._tables, canvas.columns()
        if tables is None:
            return None
        tokens, masked = canvas.tokens.gather(1, columns), canvas.masked.gather(1, columns)
        given = (self._entry, tokens, columns, masked)
        # Logits of committed columns are read by those alone who may write there anew.
        asked = None if canvas.layout.whole_block else masked
        reader = tables if self._host is None else self._host
        read = reader.read(*given, asked)
        mask = canvas.layout.mask_token_id
        return Sets(tables, read, *given, mask, self.joint, spare, self._fresh)


@dataclass(frozen=True, eq=False)
class Sets:
    """The tokens that each column of a window may hold, if nothing else of its row changes."""

    tables: Tables
    read: OnDevice | OnHost
    entry: Tensor  # (B,) int64 the states before the window
    tokens: Tensor  # (B, W) int64
    columns: Tensor  # (B, W) int64
    masked: Tensor  # (B, W) bool: any token may still come here
    mask_token_id: int
    joint: Joint
    spare: bool = False  # `held` may write into the logits that it is given
    fresh: bool = False  # `held` looks for NaN at tokens that may not come, too

    @property
    def allowed(self) -> Tensor:
        """The classes of tokens that each column may hold, (B, W, K) bool."""
        return self.read.allowed

    @cached_property
    def compelled(self) -> Tensor:
        """Which masked columns may hold a single token, (B, W) bool."""
        return self.read.single & self.masked

    def held(
        self, logits: Tensor, places: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Returns logits (B, w, V) in a dtype, with -inf for what their columns may not hold.

        `places` (B, w) int64 are the columns that they are of, by place in the window; None: all.
        The mask token is never proposed, and stays in the softmax. It gets NaN where any token has
        it in the first pass of a row, so that broken weights are found whatever its language; in
        every pass this would be a third of what the language costs.
        """
        wide, mask = logits.to(dtype), self.mask_token_id
        spare = self.spare or wide is not logits
        broken = wide.amax(-1).isnan() if self.fresh else None
        kept = self.read.hold(wide, places, mask, spare)
        if broken is not None:
            kept[..., mask] = kept[..., mask].masked_fill(broken, torch.nan)
        return kept

    def chosen(self, candidates: Candidates, logits: Tensor) -> Candidates:
        """Returns candidates with the tokens of the most probable filling, where it is asked for.

        `logits` (B, w, V) are what `held` returned; columns without any take whatever token.
        """
        if self.joint == "confidence":
            return candidates
        scores, places = class_scores(self.tables, logits), candidates.places
        if places is not None:
            at = places[..., None].expand_as(scores)
            wide = scores.new_zeros(*self.columns.shape, scores.shape[-1])
            scores = wide.scatter_(1, at, scores)
        segment = self.tables.segment(self.entry, self.tokens, self.columns, self.masked)
        classes = best_classes(self.tables, segment, scores)
        held = classes if places is None else classes.gather(1, places)
        tokens = best_tokens(self.tables, logits, held)
        if places is not None:
            tokens = candidates.token.scatter(1, places, tokens)
        free = ~(self.masked & self.tables.inside(self.columns))
        return replace(candidates, token=torch.where(free, candidates.token, tokens), measured=None)

    def settle(
        self, window: Window, decision: Decision, candidates: Candidates
    ) -> tuple[Window, Decision]:
        """Returns a decision of which everything may be written together.

        What a column may hold supposes that nothing else is written. So commits and edits are
        taken one after the other, the surest first, and one that those before it left no way for
        waits for another step: of a row's commits the first is always taken. Columns of the block
        that may hold but one token get it in any case, which takes no way from others.
        """
        compelled = self.compelled & window.masked & window.block & window.active[:, None]
        commit = decision.commit & window.masked
        if window.forced is not None:
            commit = torch.where(window.forced[:, None], window.masked, commit)
        chosen = commit | compelled
        if decision.edit is not None:
            chosen = chosen | decision.edit
        chosen = chosen & window.active[:, None]
        tokens = candidates.token if decision.tokens is None else decision.tokens
        tokens = torch.where(compelled, candidates.token, tokens)
        masked = self.masked if decision.remask is None else self.masked | decision.remask
        kept = together(self, tokens, masked, chosen, candidates.confidence)
        more = (compelled & ~commit).sum(1)
        edit = None if decision.edit is None else decision.edit & kept
        if window.forced is not None:
            window = replace(window, masked=window.masked & (kept | ~window.forced[:, None]))
        settled = replace(
            decision, commit=(commit | compelled) & kept, tokens=tokens, edit=edit, compelled=more
        )
        return window, settled


def together(
    sets: Sets, tokens: Tensor, masked: Tensor, chosen: Tensor, confidence: Tensor
) -> Tensor:
    """Returns what of some tokens can be written into a window together, (B, W) bool.

    Of `tokens` (B, W) those `chosen` (B, W) bool, the surest first; `masked` (B, W) bool are the
    columns where anything may stand unless it is written.
    """
    choice = _Choice(sets, tokens, masked)
    fits = choice.fits(chosen)
    most = int((chosen.sum(1) * ~fits).max())  # the host waits for this alone
    if not most:  # in most steps
        return chosen
    order, kept = rank(confidence, chosen), chosen & fits[:, None]
    for place in range(most):
        trial = kept | (chosen & (order == place))
        kept = torch.where(choice.fits(trial)[:, None], trial, kept)
    return kept


@dataclass(frozen=True)
class _Choice:
    """Tokens to write into a window, of which some may exclude others."""

    sets: Sets
    tokens: Tensor  # (B, W) int64
    masked: Tensor  # (B, W) bool: may hold anything unless it is written

    def fits(self, written: Tensor) -> Tensor:
        """Returns whether rows can still be filled once some columns are written, (B,) bool."""
        tokens = torch.where(written, self.tokens, self.sets.tokens)
        return self.sets.read.fits(tokens, self.masked & ~written)
