"""`dllm trace`: replays what a generation wrote step by step, in the terminal or as a page."""

from __future__ import annotations

import json
import os
import re
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from typer import Argument, Option

from dllm.cli import options
from dllm.cli.shown import Terminal, say
from dllm.cli.shown.replay import COLOURS, View, frames_of, print_rows, print_steps
from dllm.registry import nearest
from dllm.trace import TraceRecord
from dllm.trace.file import Held, read_held
from dllm.trace.page import page
from dllm.trace.text import plural

try:
    import termios
    import tty
except ImportError:  # Windows has none
    HAS_KEYS = False
else:
    HAS_KEYS = True

_ARROWS = dict(zip("ABCDHF", ("up", "down", "right", "left", "home", "end"), strict=True))
_NAMES = {
    **{f"\x1b{lead}{end}": name for lead in "[O" for end, name in _ARROWS.items()},
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    " ": "space",
    "\x1b": "quit",
    "\x04": "quit",
}
_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
HELP = "←/→ step   home/end   space play   ↑/↓ scroll   c colour   q quit"
_IDLE = 0.3  # seconds between looks at the size of the window
_SLOWEST, _FASTEST, _WHOLE = 0.5, 0.04, 10.0  # seconds: of a step, of a replay
_ABOVE = 2  # lines of the canvas above what it was scrolled to


def trace(
    file: Annotated[Path, Argument(help="From `dllm generate --trace` or `eval --trace`.")],
    id_: Annotated[
        str | None,
        Option("--id", help="The problem with this id; --list has them.", show_default="any"),
    ] = None,
    row: Annotated[
        int | None, Option(help="The row with this number, from 1.", show_default="any")
    ] = None,
    list_rows: Annotated[bool, Option("--list", help="List what the file holds.")] = False,
    html: Annotated[
        Path | None,
        Option(
            help="Write a page for a browser; all rows unless one is named.", show_default="none"
        ),
    ] = None,
    step: Annotated[
        int | None, Option(help="Print only the canvas after so many steps.", show_default="all")
    ] = None,
    colour: Annotated[
        str, Option("--colour", "--color", help="step: of the commit; or confidence.")
    ] = "step",
    as_json: options.Json = False,
) -> None:
    """Replays a generation: which tokens each step committed, edited or masked again.

    dllm generate "tom has 53 pens. tom loses 3. how many pens does tom have?" --trace rows.jsonl

    dllm trace rows.jsonl

    dllm trace rows.jsonl --html replay.html
    """
    if colour not in COLOURS:
        raise ValueError(f"colour={colour!r}: {nearest(colour, COLOURS)}")
    if html is not None and (html.suffix not in (".html", ".htm") or step is not None or as_json):
        raise ValueError(f"html={html} must end in .html, and goes without --step and --json")
    options.check_writable(html, "--html", mark='<body class="trace-page">')
    held = read_held(file)
    if list_rows:
        print_rows(held, as_json)
        return
    chosen = _chosen(held, id_, row)
    if html is not None:
        _write(html, [one.record for one in chosen], file.name)
        return
    record = _single(chosen, held).record
    if step is not None and not 0 <= step <= record.num_steps:
        raise ValueError(f"step={step} must be between 0 and {record.num_steps}, the row's steps")
    console = Terminal()
    view, terminal = View(record, colour, console.color_system), console.is_terminal
    if as_json:
        print(json.dumps(frames_of(record, step)))
    elif step is not None:
        print_steps(console, view, range(step, step + 1))
    elif HAS_KEYS and terminal and sys.stdin.isatty() and not console.is_dumb_terminal:
        replay(console, view)
    else:
        print_steps(console, view, range(record.num_steps + 1))


def _chosen(held: Sequence[Held], id_: str | None, row: int | None) -> list[Held]:
    """Returns the rows that the options name; all with a trace if they name none."""
    if id_ is not None and row is not None:
        raise ValueError("give --id or --row, not both")
    if row is not None:
        if not 1 <= row <= len(held):
            raise ValueError(f"row={row} must be between 1 and {len(held)}; --list lists all")
        return [held[row - 1]]
    if id_ is None:
        return [one for one in held if one.content is not None]
    found = [one for one in held if one.id == id_]
    if not found:
        ids = {one.id for one in held if one.id}
        like = nearest(id_, ids, "--list lists all rows") if ids else "no row has an id"
        raise ValueError(f"no row has id={id_!r}: {like}")
    return found


def _single(chosen: Sequence[Held], held: Sequence[Held]) -> Held:
    """Returns the row to show; says which one if there are more."""
    if len({one.id for one in chosen if one.id}) == 1 and len(chosen) > 1:
        rows = ", ".join(str(one.number) for one in chosen)
        raise ValueError(f"id={chosen[0].id!r} is in {len(chosen)} runs: name one as --row {rows}")
    if len(chosen) > 1:
        number = f"row {chosen[0].number} of {len(held)}"
        say(f"{number}; --row or --id name another, --list lists all")
    return chosen[0]


def _write(path: Path, records: Sequence[TraceRecord], name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with options.naming(path):
        path.write_text(page(records, f"Replay of {name}"), encoding="utf-8")
    say(f"written: {path} ({plural(len(records), 'row')}); open it in a browser")


# A replay that one steps through with keys.


class Keys:
    """Reads keys one by one while it is open; the terminal is as before when it is left."""

    def __enter__(self) -> Keys:
        """Tells the terminal not to wait for whole lines."""
        self._number = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._number)
        self._waiting: list[str] = []
        tty.setcbreak(self._number)  # not raw: Ctrl-C stays an interrupt
        return self

    def __exit__(self, *error: object) -> None:
        """Gives the terminal back."""
        termios.tcsetattr(self._number, termios.TCSADRAIN, self._before)

    def read(self, seconds: float) -> str | None:
        """Returns the next key by name or letter, None if none was pressed in time."""
        if not self._waiting:
            if not select.select([self._number], [], [], seconds)[0]:
                return None
            pressed = os.read(self._number, 1024).decode(errors="replace")
            if not pressed:
                return "quit"  # the terminal is gone
            self._waiting = _KEY.findall(pressed)
        key = self._waiting.pop(0)
        return _NAMES.get(key, key)


@dataclass(frozen=True)
class Screen:
    """What is on the screen: a step, the first line of the canvas, and whether it plays."""

    view: View
    step: int = 0
    top: int | None = None  # None: where the step wrote
    playing: bool = False

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        steps = max(self.view.record.num_steps, 1)
        return min(max(_WHOLE / steps, _FASTEST), _SLOWEST) if self.playing else _IDLE

    def after(self, key: str | None, console: Console) -> Screen | None:
        """Returns the screen after a key, or after a pause without one; None: the end."""
        if key in ("q", "Q", "quit"):
            return None
        if key is None:
            moved = self._at(self.step + 1) if self.playing else self
            return replace(moved, playing=moved.playing and moved.step < self._last)
        goals = {"right": self.step + 1, "left": self.step - 1, "home": 0, "end": self._last}
        if key in goals:
            return replace(self._at(goals[key]), playing=False)
        if key == "space":
            start = 0 if self.step == self._last and not self.playing else self.step
            return replace(self._at(start), playing=not self.playing)
        if key == "c":
            colour = "step" if self.view.colour == "confidence" else "confidence"
            return replace(self, view=replace(self.view, colour=colour))
        room = self._room(console)
        lines = {"up": -1, "down": 1, "page up": -room, "page down": room}
        if key in lines:
            return replace(self, top=self._top(console) + lines[key])
        return self

    def drawn(self, console: Console) -> Group:
        """Returns the screen's lines, no more than fit."""
        lines = self.view.lines(self.step, console.width).lines
        top, room = self._top(console), self._room(console)
        shown = lines[top : top + room]
        body = Text("\n").join(shown)
        more = f"   lines {top + 1} to {top + len(shown)} of {len(lines)}"
        counter = Text(self.view.counter(self.step) + (more if len(lines) > room else ""), "bold")
        return Group(*self.view.head(), counter, Text(), body, Text(), Text(HELP, style="dim"))

    @property
    def _last(self) -> int:
        return self.view.record.num_steps

    def _at(self, step: int) -> Screen:
        step = min(max(step, 0), self._last)
        return self if step == self.step else replace(self, step=step, top=None)

    def _room(self, console: Console) -> int:
        """Returns the lines that are left for the canvas."""
        head = sum(len(text.wrap(console, console.width)) for text in self.view.head())
        counter = -(-len(self.view.counter(self.step)) // console.width) + 1
        return max(console.height - head - counter - 4, 1)

    def _top(self, console: Console) -> int:
        drawn, top = self.view.lines(self.step, console.width), self.top
        if top is None:
            changed, start = self.view.frames[self.step].changed, self.view.record.prompt_length
            first = min((c for c, kind in changed.items() if kind != "fill"), default=start)
            top = drawn.line_of.get(first, 0) - _ABOVE
        return min(max(top, 0), max(len(drawn.lines) - self._room(console), 0))


def replay(console: Console, view: View) -> None:
    """Shows a replay until the user leaves it."""
    screen: Screen | None = Screen(view)
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while screen is not None:
            live.update(screen.drawn(console), refresh=True)
            screen = screen.after(keys.read(screen.pause), console)
