"""The replay that one steps through with keys."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dllm.cli.keys import Keys
from dllm.cli.trace_view import View

HELP = "←/→ step   home/end   space play   ↑/↓ scroll   c colour   q quit"
_IDLE = 0.3  # seconds between looks at the size of the window
_SLOWEST, _FASTEST, _WHOLE = 0.5, 0.04, 10.0  # seconds: of a step, of a replay
_ABOVE = 2  # lines of the canvas above what it was scrolled to


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
        body = Text("\n").join(lines[top : top + room])
        more = f"   lines {top + 1} to {top + len(lines[top : top + room])} of {len(lines)}"
        counter = Text(self.view.counter(self.step) + (more if len(lines) > room else ""), "bold")
        return Group(*self._head(), counter, Text(), body, Text(), Text(HELP, style="dim"))

    def _head(self) -> list[Text]:
        return [self.view.story(), self.view.legend()]

    @property
    def _last(self) -> int:
        return self.view.record.num_steps

    def _at(self, step: int) -> Screen:
        step = min(max(step, 0), self._last)
        return self if step == self.step else replace(self, step=step, top=None)

    def _room(self, console: Console) -> int:
        """Returns the lines that are left for the canvas."""
        head = sum(len(text.wrap(console, console.width)) for text in self._head())
        counter = -(-len(self.view.counter(self.step)) // console.width) + 1
        return max(console.height - head - counter - 4, 1)

    def _top(self, console: Console) -> int:
        drawn, top = self.view.lines(self.step, console.width), self.top
        if top is None:
            column = self.view.first_change(self.step)
            place = self.view.record.prompt_length if column is None else column
            top = drawn.line_of.get(place, 0) - _ABOVE
        return min(max(top, 0), max(len(drawn.lines) - self._room(console), 0))


def replay(console: Console, view: View) -> None:
    """Shows a replay until the user leaves it."""
    screen: Screen | None = Screen(view)
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while screen is not None:
            live.update(screen.drawn(console), refresh=True)
            screen = screen.after(keys.read(screen.pause), console)
