"""A replayed canvas as the terminal shows it: tokens in lines, coloured by when they came."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from dllm.cli.shown import Terminal
from dllm.state.canvas import NEVER
from dllm.trace import Frame, TraceRecord
from dllm.trace.file import Held
from dllm.trace.page import AGAIN as MASKED_AGAIN
from dllm.trace.page import OPEN, block_at, count, story, texts
from dllm.trace.text import visible

BLOCK = "▏"
_PLAIN = {"commit": "[{}]", "edit": "{{{}}}", "remask": "({})", "fill": "{}"}
_RAMP = 6  # places of the legend's ramp
COLOURS = ("step", "confidence")
DIM = Style(dim=True)
FILLED = Style(dim=True, italic=True)
AGAIN = Style(color="red", bold=True)
HERE = Style(color="blue", bold=True)  # where the row's block begins
UNKNOWN = Style(color="black", bgcolor="white")
NOW: Mapping[str, Style] = {
    "commit": Style(bold=True, underline=True),
    "edit": Style(bold=True, italic=True, underline2=True),
    "remask": Style(reverse=True),
    "fill": Style(),
}
# From early or unsure to late or sure, all light enough for black text on them.
_RAMPS = {
    "step": ((174, 203, 255), (174, 229, 168), (255, 196, 112)),
    "confidence": ((255, 150, 112), (255, 232, 150), (150, 208, 245)),
}
# The same for terminals of 16 colours, which would show most of these as white.
_FEW = {"step": ("cyan", "green", "yellow"), "confidence": ("red", "yellow", "cyan")}
_FEW_SYSTEMS = ("standard", "windows")


def back(colour: str, share: float, system: str) -> Style:
    """Returns the style at a place of a ramp, from 0 to 1, for a colour system of rich."""
    share = min(max(share, 0.0), 1.0)
    if system in _FEW_SYSTEMS:
        return Style(color="black", bgcolor=_FEW[colour][min(int(3 * share), 2)])
    low, middle, high = _RAMPS[colour]
    one, other, at = (low, middle, 2 * share) if share < 0.5 else (middle, high, 2 * share - 1)
    mixed = [round(a + (b - a) * at) for a, b in zip(one, other, strict=True)]
    return Style(color="black", bgcolor="rgb({},{},{})".format(*mixed))


@dataclass(frozen=True)
class Cell:
    """A text with its style, and the canvas column that it stands for, -1: none."""

    column: int
    text: str
    style: Style


@dataclass(frozen=True)
class Lines:
    """Lines, and the one in which each column begins."""

    lines: list[Text]
    line_of: dict[int, int]


def in_lines(cells: Iterable[Cell], width: int) -> Lines:
    """Returns cells in lines of at most `width`; only a token wider than that is divided."""
    lines, used = [Text()], 0
    line_of: dict[int, int] = {}
    for cell in cells:
        for number, part in enumerate(cell.text.split("\n")):
            if number:
                lines.append(Text())
                used = 0
            for chunk in [part] if cell_len(part) <= width else chop_cells(part, width):
                if used + cell_len(chunk) > width:
                    lines.append(Text())
                    used = 0
                line_of.setdefault(cell.column, len(lines) - 1)
                lines[-1].append(chunk, cell.style)
                used += cell_len(chunk)
    return Lines(lines, line_of)


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

    def head(self) -> tuple[Text, Text]:
        """Returns what the row is and what it cost, and what signs and colours mean."""
        signs = [f"{OPEN} open", *(["[written in this step]"] if self.system is None else [])]
        if self.record.changes is not None:
            signs += [f"{MASKED_AGAIN} masked again"] + ["{edited}"] * (self.system is None)
        signs += [f"{BLOCK}block begins"] if self.record.blocks else []
        legend = Text.assemble(*self._ramp(), "   ".join(signs), style="dim")
        return Text(story(self.record), style="bold"), legend

    def _ramp(self) -> Iterator[str | tuple[str, Style]]:
        """Yields the parts of a scale, none where there are no colours."""
        if self.system is None:
            return
        by_step = self.colour == "step"
        yield "step 1 " if by_step else "confidence 0 "
        for place in range(_RAMP):
            yield " ", back(self.colour, place / (_RAMP - 1), self.system)
        yield f" {max(self.record.num_steps, 1)}   " if by_step else " 1   "

    def _cells(self, step: int, columns: range) -> Iterator[Cell]:
        frame, here = self.frames[step], block_at(self.record, step)
        shown, begins = texts(self.record, frame), dict(self.record.blocks)
        for column in columns:
            if begins.get(column, step + 1) <= step:
                yield Cell(-1, BLOCK, HERE if column == here else DIM)
            text, kind = visible(shown[column]), frame.changed.get(column)
            if kind is not None and self.system is None:
                text = _PLAIN[kind].format(text)
            yield Cell(column, text, self._style(frame, column))

    def _style(self, frame: Frame, column: int) -> Style:
        written, given = frame.written[column], column in self._given
        now = NOW[frame.changed.get(column, "fill")]
        if frame.tokens[column] == self.record.mask_token_id and not given:
            return (DIM if written == NEVER else AGAIN) + now
        if written == NEVER:
            return DIM if given else FILLED
        share = self._share(column, written)
        if share is None or self.system is None:
            return UNKNOWN + now
        return back(self.colour, share, self.system) + now

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
    console.print(*view.head(), sep="\n")
    if start:
        console.print(Text("prompt", style="bold"))
        console.print(*view.lines(0, console.width, range(start)).lines, sep="\n")
    for step in steps:
        console.print()
        console.print(Text(view.counter(step), style="bold"))
        console.print(*view.lines(step, console.width, range(start, end)).lines, sep="\n")


def print_rows(held: Sequence[Held], as_json: bool) -> None:
    """Prints what a file holds, a line a row."""
    rows = [_described(one) for one in held]
    if as_json:
        print(json.dumps({"rows": rows}))
        return
    table = Table(box=SIMPLE_HEAD)
    for head in rows[0]:
        table.add_column(head.replace("_", " "), overflow="fold")
    for one in rows:
        table.add_row(*("" if value is None else visible(str(value)) for value in one.values()))
    Terminal().print_table(table)


def _described(one: Held) -> dict[str, Any]:
    known: dict[str, Any] = {"row": one.number, "id": one.id or None, "run": one.run or None}
    if one.content is None:
        return {**known, "steps": None, "forwards": None, "ended_by": None, "label": "no trace"}
    record = one.record
    return {
        **known,
        "steps": record.num_steps,
        "forwards": record.forwards,
        "ended_by": record.finish_reason,
        "label": record.label.removeprefix(f"{one.id}: ") or None,
    }


def frames_of(record: TraceRecord, step: int | None) -> dict[str, Any]:
    """Returns the canvas after each step, or after one, as JSON-ready values."""
    frames = [
        {"step": n, "tokens": f.tokens, "texts": texts(record, f), "changed": dict(f.changed)}
        for n, f in enumerate(record.frames())
        if step in (None, n)
    ]
    return {"label": record.label, "num_steps": record.num_steps, "frames": frames}
