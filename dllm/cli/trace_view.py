"""A replayed canvas as the terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console
from rich.style import Style
from rich.text import Text

from dllm.cli import trace_colours as colours
from dllm.cli.trace_lines import Cell, Lines, in_lines
from dllm.state.canvas import NEVER
from dllm.trace.page import AGAIN, OPEN, block_at, count, story, texts
from dllm.trace.record import Frame, TraceRecord
from dllm.trace.text import visible

BLOCK = "▏"
_PLAIN = {"commit": "[{}]", "edit": "{{{}}}", "remask": "({})", "fill": "{}"}
_RAMP = 6  # places of the legend's ramp


@dataclass(frozen=True)
class View:
    """A record and how it is drawn."""

    record: TraceRecord
    colour: str = "step"
    system: str | None = "truecolor"  # rich's name of the terminal's colours, None: it has none

    @cached_property
    def frames(self) -> list[Frame]:
        """The canvas before the first step and after each."""
        return list(self.record.frames())

    def lines(self, step: int, width: int, columns: range | None = None) -> Lines:
        """Returns the canvas after a step, or some columns of it, in lines."""
        return in_lines(self._cells(step, columns or range(len(self.record.tokens))), width)

    def counter(self, step: int) -> str:
        """Returns in words what a step did."""
        return count(self.record, self.frames[step], step)

    def first_change(self, step: int) -> int | None:
        """Returns the first column that a step wrote itself, None if it wrote none."""
        changed = self.frames[step].changed
        return min((column for column, kind in changed.items() if kind != "fill"), default=None)

    def story(self) -> Text:
        """Returns what the row is and what it cost."""
        return Text(story(self.record), style="bold")

    def legend(self) -> Text:
        """Returns what signs and colours mean."""
        signs = [f"{OPEN} open", *(["[written in this step]"] if self.system is None else [])]
        if self.record.changes is not None:
            signs += [f"{AGAIN} masked again"] + ["{edited}"] * (self.system is None)
        signs += [f"{BLOCK}block begins"] if self.record.blocks else []
        return Text.assemble(*self._ramp(), "   ".join(signs), style="dim")

    def _ramp(self) -> Iterator[str | tuple[str, Style]]:
        """Yields the parts of a scale, none where there are no colours."""
        if self.system is None:
            return
        by_step = self.colour == "step"
        yield "step 1 " if by_step else "confidence 0 "
        for place in range(_RAMP):
            yield " ", colours.back(self.colour, place / (_RAMP - 1), self.system)
        yield f" {max(self.record.num_steps, 1)}   " if by_step else " 1   "

    def _cells(self, step: int, columns: range) -> Iterator[Cell]:
        frame, here = self.frames[step], block_at(self.record, step)
        shown, begins = texts(self.record, frame), dict(self.record.blocks)
        for column in columns:
            if begins.get(column, step + 1) <= step:
                yield Cell(-1, BLOCK, colours.HERE if column == here else colours.DIM)
            text, kind = visible(shown[column]), frame.changed.get(column)
            if kind is not None and self.system is None:
                text = _PLAIN[kind].format(text)
            yield Cell(column, text, self._style(frame, column))

    def _style(self, frame: Frame, column: int) -> Style:
        written, given = frame.written[column], column in self._given
        now = colours.NOW[frame.changed.get(column, "fill")]
        if frame.tokens[column] == self.record.mask_token_id and not given:
            return (colours.DIM if written == NEVER else colours.AGAIN) + now
        if written == NEVER:
            return colours.DIM if given else colours.FILLED
        share = self._share(column, written)
        if share is None or self.system is None:
            return colours.UNKNOWN + now
        return colours.back(self.colour, share, self.system) + now

    @cached_property
    def _given(self) -> frozenset[int]:
        return frozenset((*range(self.record.prompt_length), *self.record.given))

    def _share(self, column: int, written: int) -> float | None:
        """Returns where on the ramp a column's colour is, from 0 to 1; None: not known."""
        record, slot = self.record, column - self.record.prompt_length
        if self.colour == "step":
            return written / (record.num_steps - 1) if record.num_steps > 1 else 0.0
        return record.confidence[slot] if record.commit_step[slot] == written else None


def print_steps(console: Console, view: View, steps: range) -> None:
    """Prints the canvas after each of some steps, the prompt once."""
    start, end = view.record.prompt_length, len(view.record.tokens)
    console.print(view.story(), view.legend(), sep="\n")
    if start:
        console.print(Text("prompt", style="bold"))
        console.print(*view.lines(0, console.width, range(start)).lines, sep="\n")
    for step in steps:
        console.print()
        console.print(Text(view.counter(step), style="bold"))
        console.print(*view.lines(step, console.width, range(start, end)).lines, sep="\n")
