"""What constraints cost the answers and the clock, for evaluations, which ask for it.

A `Toll` takes the place of a generation's languages and passes every call on. Around each it looks
at the clock, and beside it at how much less probable the best token that a column may hold is than
the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from dllm.decoding.languages.held import HeldRows, HeldWindow
from dllm.state.candidates import Candidates
from dllm.state.canvas import Canvas
from dllm.state.progress import Progress
from dllm.state.window import Decision, Window


@dataclass
class Clock:
    """Seconds spent between marks: of the CPU, or of a CUDA device in its own time.

    On CUDA they are those from the end of the work before to the end of the work between the marks,
    so that a host that waits for a forward is not counted, and nothing waits for the measuring.
    """

    device: torch.device
    _seconds: float = 0.0
    _open: list[tuple[Any, Any]] = field(default_factory=list)  # events that may not be over yet

    @property
    def seconds(self) -> float | None:
        """What was spent so far; None on devices that are neither."""
        if self.device.type not in ("cpu", "cuda"):
            return None
        for start, end in self._open:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._open.clear()
        return self._seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts what is done inside."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._open.append((start, end))
        else:
            before = perf_counter()
            yield
            self._seconds += perf_counter() - before


class Toll:
    """The languages of a generation, with what they cost it.

    `lost` has, for each column of each prompt, by how many nats the best token that it might hold
    was less probable than the model's own best one, when it was written; 0 where the language left
    the model its way. With `joint="map"` the first of the two is the token of the most probable
    text. Both are of the distribution before temperature, without tokens that are never proposed.
    """

    def __init__(self) -> None:
        self.clock: Clock | None = None  # None: no prompt has a language
        self._inner: HeldRows | None = None
        self._canvas: Canvas | None = None  # which is decoded; others are drafts
        self._barred = torch.empty(0)  # (n,) int64 tokens that are never proposed
        self._lost = torch.empty(0, 0)  # (P, C) float32
        self._seats = torch.empty(0)  # (B,) int64 the prompts at the seats
        self._prompts: tuple[int, ...] = ()

    def on(self, inner: HeldRows, barred: tuple[int, ...], device: torch.device) -> Toll:
        """Returns itself in the place of a generation's languages.

        `barred` are the tokens that are never proposed.
        """
        self._inner, self.clock = inner, Clock(device)
        self._barred = torch.tensor(sorted(set(barred)), device=device)
        return self

    @property
    def seconds(self) -> float | None:
        """Spent on the languages of all rows so far; None: there are none, or nothing tells."""
        return None if self.clock is None else self.clock.seconds

    def lost(self, prompt: int) -> float | None:
        """Returns the nats that a prompt's row has lost so far; None: it has no language."""
        if not self.holds(prompt):
            return None
        return float(self._lost[prompt].sum()) if len(self._lost) else 0.0

    def enter(self, canvas: Canvas, progress: Progress, prompts: tuple[int, ...]) -> None:
        """Passes on `HeldRows.enter`."""
        assert self._inner is not None
        assert self.clock is not None
        with self.clock.running():
            self._inner.enter(canvas, progress, prompts)
        if not len(self._lost):
            size = len(canvas.layout.lengths), canvas.layout.num_stored
            self._lost = torch.zeros(size, device=canvas.tokens.device)
        if prompts != self._prompts:
            self._prompts = prompts
            self._seats = torch.tensor(prompts, device=canvas.tokens.device)
        self._canvas = canvas

    def holds(self, prompt: int) -> bool:
        """Passes on `HeldRows.holds`."""
        return self._inner is not None and self._inner.holds(prompt)

    def adopt(self, prompt: int, alone: HeldRows) -> None:
        """Passes on `HeldRows.adopt`."""
        assert self._inner is not None
        self._inner.adopt(prompt, alone)

    def sets(self, canvas: Canvas, spare: bool = False) -> TolledSets | None:
        """Returns what `HeldRows.sets` does, watched."""
        assert self._inner is not None
        assert self.clock is not None
        with self.clock.running():
            sets = self._inner.sets(canvas, spare)
        return None if sets is None else TolledSets(sets, self, canvas is self._canvas)

    def best(self, logits: Tensor) -> Tensor:
        """Returns the largest of logits (B, w, V) that are of tokens that may be proposed."""
        values, tokens = logits.topk(min(len(self._barred) + 1, logits.shape[-1]), -1)
        barred = (tokens[..., None] == self._barred).any(-1)
        return values.masked_fill(barred, -torch.inf).amax(-1).float()

    def note(self, columns: Tensor, written: Tensor, nats: Tensor) -> None:
        """Notes the nats (B, W) that were lost at the columns (B, W) that are `written`, bool."""
        rows = self._seats[:, None].expand_as(columns)
        self._lost[rows, columns] = torch.where(written, nats, self._lost[rows, columns])


@dataclass(eq=False)
class TolledSets:
    """The sets of one step, watched."""

    inner: HeldWindow
    toll: Toll
    real: bool  # whether what is settled is written, and is no draft
    _own: Tensor | None = None  # (B, w) the model's best logits
    _nats: Tensor | None = None  # (B, w) that the best allowed token is behind
    _places: Tensor | None = None  # (B, w) int64 whose columns they are; None: all

    def held(
        self, logits: Tensor, places: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Passes on `HeldWindow.held`; the first call is about what is proposed."""
        first = self.real and self._nats is None
        if first:  # before they are written into
            self._own, self._places = self.toll.best(logits), places
        with self._clock.running():
            kept = self.inner.held(logits, places, dtype)
        if first and self._own is not None:
            self._nats = self._own - self.toll.best(kept)
        return kept

    def chosen(self, candidates: Candidates, logits: Tensor) -> Candidates:
        """Passes on `HeldWindow.chosen`."""
        with self._clock.running():
            found = self.inner.chosen(candidates, logits)
        if self._own is not None and found is not candidates:
            token = found.token if self._places is None else found.token.gather(1, self._places)
            self._nats = self._own - logits.gather(2, token[..., None])[..., 0].float()
        return found

    def settle(
        self, window: Window, decision: Decision, candidates: Candidates
    ) -> tuple[Window, Decision]:
        """Passes on `HeldWindow.settle`, and notes what the columns lost that are written."""
        with self._clock.running():
            window, decision = self.inner.settle(window, decision, candidates)
        if self.real and self._nats is not None:
            commit = decision.commit & window.masked
            if window.forced is not None:
                commit = torch.where(window.forced[:, None], window.masked, commit)
            changed = [one for one in (decision.edit, decision.remask) if one is not None]
            written = torch.stack([commit, *changed]).any(0) & window.active[:, None]
            nats = self._wide(self._nats, written)
            if decision.remask is not None:
                nats = nats.masked_fill(decision.remask, 0)
            self.toll.note(window.columns, written, nats)
        return window, decision

    @property
    def _clock(self) -> Clock:
        assert self.toll.clock is not None
        return self.toll.clock

    def _wide(self, nats: Tensor, window: Tensor) -> Tensor:
        """Returns the nats lost at each column of a window (B, W), 0 where none were measured."""
        nats = nats.clamp(min=0)
        if self._places is not None:
            nats = nats.new_zeros(window.shape).scatter_(1, self._places, nats)
        return nats
