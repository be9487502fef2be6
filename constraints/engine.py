"""Which tokens keep every row of a canvas in its language: exact sets, as tensors.

A column that waits may hold any token, so a row is in reach of its language if some filling of all
its masks is accepted, with exactly as many tokens as there are columns. The states that a prefix
can end in go forwards, those that the rest is accepted from go backwards, and a token may stand
where it joins the two (as in arXiv 2505.23061, of sets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dllm.constraints.automaton import NEVER
from dllm.constraints.lines import RowLanguage, lines_of


@dataclass(frozen=True)
class Segment:
    """Some columns of every row, the states before them, and those accepted behind them."""

    entry: Tensor  # (N,) float32 0 or 1
    follow: Tensor  # (W, N) int64 where a column's token leads; where any may stand, nowhere
    jumps: Tensor  # (W, N) float32 1 where any token may stand
    end: Tensor  # (N,) float32 0 or 1


@dataclass(frozen=True)
class Reach:
    """The states on both sides of every column of a segment."""

    before: Tensor  # (W + 1, N) float32 0 or 1: what stands before can end in the state
    after: Tensor  # (W + 1, N) float32 0 or 1: what follows is accepted from the state


class Tables:
    """The languages of a batch of rows as tensors; the states of all rows lie in one line.

    Rows without a language have no states. N states, E arrows, K classes, W columns of a segment.
    """

    def __init__(self, rows: Sequence[RowLanguage | None], device: torch.device) -> None:
        lines = self.lines = lines_of(rows)
        made = {name: torch.from_numpy(value).to(device) for name, value in vars(lines).items()}
        self.device, self.num_rows = device, len(rows)
        self.num_states, self.num_classes = len(lines.row_of), lines.sizes.shape[1]
        self.free = made["free"]  # (B,) bool: rows without a language
        self.start, self.stop = made["start"], made["stop"]  # (B,) int64 columns of the span
        self.first = made["first"]  # (B,) int64 state before the first token
        self.row_of = made["row_of"]  # (N,) int64
        self.sources, self.targets = made["sources"], made["targets"]  # (E,) int64
        self.classes = made["classes"]  # (A, V) int64 classes of each language's tokens
        self.language_of = made["language_of"]  # (B,) int64
        self.sizes = made["sizes"]  # (B, K) float32 tokens of each class
        self._offset, self._pointer, self._table = made["offset"], made["pointer"], made["table"]
        self._stride, self._stay, self._tails = made["stride"], made["stay"], made["tails"]
        # Numbers of the size that the segments of every step have.
        numbers = (self._offset, self._pointer, self._stride)
        self._small = tuple(number[:-1].int() for number in numbers)
        self._tail_of, self._tail_last = made["tail_of"], made["tail_last"]
        self._label_arrows, self._bags = made["label_arrows"], made["bags"]
        self._label_bags = made["label_bags"]

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    @property
    def states(self) -> Tensor:
        """The numbers of all states, (N,) int64."""
        return torch.arange(self.num_states, device=self.device)

    @property
    def labels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Arrows, classes and rows of all labels, (n,) int64: how a token may lead where."""
        rows = self._label_bags.div(self.num_classes, rounding_mode="floor")
        classes = self._label_bags % self.num_classes
        return self._label_arrows, classes, rows

    def states_at(self, tokens: Tensor, column: Tensor, num_columns: int) -> Tensor:
        """Returns the state of each row before a column (B,), (B,) int64.

        `tokens` (B, C) holds no masks between the row's start and that column, which are at most
        `num_columns`.
        """
        state = self.first
        columns = self.start[:, None] + torch.arange(num_columns, device=self.device)
        inside = (columns < torch.minimum(column, self.stop)[:, None]) & ~self.free[:, None]
        held = tokens.gather(1, columns.clamp(max=tokens.shape[1] - 1))
        classes = self.classes[self.language_of[:, None], held]
        for at, known in zip(inside.unbind(1), classes.unbind(1), strict=True):
            state = torch.where(at, self._next(state, known), state)
        return state

    def segment(self, entry: Tensor, tokens: Tensor, columns: Tensor, masked: Tensor) -> Segment:
        """Returns columns (B, W) that follow each other, with what stands there.

        `entry` (B,) int64 are the rows' states before them. What stands behind them is taken to be
        as it was before any step: what fills it later leaves states that accept both.
        """
        found = torch.zeros(self.num_states + 1, device=self.device).index_fill_(0, entry, 1)
        left = (self.stop - columns[:, -1] - 1).clamp(min=0).minimum(self._tail_last)
        tails = self._tail_of + left[self.row_of] * self._stride[:-1]
        nothing = self.jumps_of(columns, masked)
        follow, end = self.follow(tokens, columns, masked), self._tails[tails].float()
        return Segment(found[: self.num_states], follow, nothing, end)

    def read(
        self,
        entry: Tensor,
        tokens: Tensor,
        columns: Tensor,
        masked: Tensor,
        asked: Tensor | None = None,
    ) -> OnDevice:
        """Returns what the columns of a window may hold, see `segment`.

        Columns that are not `asked` about (B, W) bool are let hold anything; None: all are.
        """
        return OnDevice(self, columns, self.segment(entry, tokens, columns, masked), asked)

    def jumps_of(self, columns: Tensor, masked: Tensor) -> Tensor:
        """Returns where any token may stand, (W, N) float32; `masked` is (B, W)."""
        return (self.inside(columns) & masked).float().T.index_select(1, self.row_of)

    def follow(self, tokens: Tensor, columns: Tensor, masked: Tensor) -> Tensor:
        """Returns where each state goes at each column, (W, N) int64.

        Nowhere where any token may stand. Arguments are (B, W); columns outside a row's span
        change nothing.
        """
        classes = self.classes[self.language_of[:, None], tokens].masked_fill(masked, NEVER)
        classes = torch.where(self.inside(columns), classes, self._stay[:, None])
        classes = classes.int().T.index_select(1, self.row_of)
        offset, pointer, stride = self._small
        places = torch.addcmul(pointer, classes, stride)
        inner = self._table.index_select(0, places.flatten()).view_as(places)
        return inner.add_(offset).long()

    def inside(self, columns: Tensor) -> Tensor:
        """Returns which columns (B, W) belong to what their row's language is about, bool."""
        span = (columns >= self.start[:, None]) & (columns < self.stop[:, None])
        return span & ~self.free[:, None]

    def reach(self, segment: Segment) -> Reach:
        """Returns the states on both sides of every column of a segment."""
        after = segment.end.new_empty(len(segment.jumps) + 1, self.num_states)
        after[-1] = segment.end
        lines = after.unbind()
        for column in range(len(segment.jumps) - 1, -1, -1):
            found, later = lines[column], lines[column + 1]
            torch.index_select(later, 0, segment.follow[column], out=found)
            into = later.index_select(0, self.targets)
            known = torch.zeros_like(found).scatter_reduce_(0, self.sources, into, "amax")
            found.addcmul_(known, segment.jumps[column])
        return Reach(self._forwards(segment), after)

    def _forwards(self, segment: Segment) -> Tensor:
        """Returns which states are reached before each column, (W + 1, N) float32."""
        found = torch.zeros(len(segment.jumps) + 1, self.num_states, device=self.device)
        found[0] = segment.entry
        lines = found.unbind()
        for column, (follow, jumps) in enumerate(zip(segment.follow, segment.jumps, strict=True)):
            now, later = lines[column], lines[column + 1]
            later.scatter_reduce_(0, follow, now, "amax")
            leaving = (now * jumps).index_select(0, self.sources)
            later.scatter_reduce_(0, self.targets, leaving, "amax")
        return found

    def feasible(self, segment: Segment) -> Tensor:
        """Returns which rows some filling of their masks is accepted for, (B,) bool."""
        return self._any(self._forwards(segment)[-1] * segment.end) | self.free

    def joined(self, reach: Reach) -> Tensor:
        """Returns the same, from what is in reach."""
        return self._any(reach.before[-1] * reach.after[-1]) | self.free

    def allowed(self, reach: Reach) -> Tensor:
        """Returns which classes may stand at each column, (B, W, K) bool.

        Any token of such a class, whatever is there now, if nothing else is written.
        """
        return self.between(reach.before[:-1], reach.after[1:])

    def between(self, before: Tensor, after: Tensor) -> Tensor:
        """Returns which classes join states before and behind columns (W, N), (B, W, K) bool."""
        if not len(self._label_arrows):
            return self.free[:, None, None].expand(-1, len(before), self.num_classes)
        before = before.T.contiguous().index_select(0, self.sources)
        after = after.T.contiguous().index_select(0, self.targets)
        taken = torch.embedding_bag(before.mul_(after), self._label_arrows, self._bags)[0] > 0
        sets = taken.unflatten(0, (self.num_rows, self.num_classes)).transpose(1, 2)
        return sets | self.free[:, None, None]

    def barred(self, sets: Tensor) -> Tensor:
        """Returns the tokens that are not in sets (B, w, K) bool of classes, (B, w, V) bool."""
        if len(self.classes) == 1:
            return (~sets).index_select(-1, self.classes[0])
        each = self.classes[self.language_of][:, None].expand(-1, sets.shape[1], -1)
        return (~sets).gather(-1, each)

    def _next(self, states: Tensor, classes: Tensor) -> Tensor:
        """Returns the states that classes of tokens lead to."""
        inner = self._table[self._pointer[states] + classes * self._stride[states]]
        return self._offset[states] + inner

    def _any(self, states: Tensor) -> Tensor:
        """Returns which rows have one of some states (N,), (B,) bool."""
        found = torch.zeros(self.num_rows, device=self.device)
        return found.index_add_(0, self.row_of, states) > 0


@dataclass(frozen=True, eq=False)
class OnDevice:
    """What the columns of a window may hold, as tensors: the host waits for nothing."""

    tables: Tables
    columns: Tensor  # (B, W) int64
    segment: Segment  # what stands there
    asked: Tensor | None = None  # (B, W) bool columns that somebody reads; None: all

    @cached_property
    def allowed(self) -> Tensor:
        """The classes of tokens that each column may hold, (B, W, K) bool."""
        allowed = self.tables.allowed(self.tables.reach(self.segment))
        return allowed | ~self._of_a_row[..., None]

    @property
    def single(self) -> Tensor:
        """Which columns may hold one token alone, (B, W) bool."""
        counts = torch.einsum("bwk,bk->bw", self.allowed.float(), self.tables.sizes)
        return (counts == 1) & self._of_a_row

    @cached_property
    def _of_a_row(self) -> Tensor:
        """Which columns are in their row's span, and asked about, (B, W) bool."""
        inside = self.tables.inside(self.columns)
        return inside if self.asked is None else inside & self.asked

    def hold(self, logits: Tensor, places: Tensor | None, keep: int, spare: bool) -> Tensor:
        """Returns logits (B, w, V) with -inf for what their columns may not hold.

        `places` (B, w) int64 are the columns that they are of, by place in the window; None: all.
        The token `keep` keeps its logits. `spare` logits are nobody else's, and may be written.
        """
        allowed = self.allowed
        if places is not None:
            at = places[..., None].expand(-1, -1, allowed.shape[-1])
            allowed = allowed.gather(1, at)
        barred = self.tables.barred(allowed)
        barred[..., keep] = False
        return (logits.masked_fill_ if spare else logits.masked_fill)(barred, -torch.inf)

    def fits(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """Returns which rows can still be filled with other tokens in the window, (B,) bool.

        `masked` (B, W) bool are columns where any may stand.
        """
        tables, columns = self.tables, self.columns
        follow = tables.follow(tokens, columns, masked)
        moved = replace(self.segment, follow=follow, jumps=tables.jumps_of(columns, masked))
        return tables.feasible(moved)
