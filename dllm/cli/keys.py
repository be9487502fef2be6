"""Single keys from a terminal."""

from __future__ import annotations

import os
import re
import select
import sys
from types import TracebackType

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


class Keys:
    """Reads keys one by one while it is open; the terminal is as before when it is left."""

    def __enter__(self) -> Keys:
        """Tells the terminal not to wait for whole lines."""
        self._number = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._number)
        self._waiting: list[str] = []
        tty.setcbreak(self._number)  # not raw: Ctrl-C stays an interrupt
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives the terminal back."""
        termios.tcsetattr(self._number, termios.TCSADRAIN, self._before)

    def read(self, seconds: float) -> str | None:
        """Returns the next key by name or letter, None if none was pressed in time."""
        if not self._waiting:
            if not select.select([self._number], [], [], seconds)[0]:
                return None
            given = os.read(self._number, 1024).decode(errors="replace")
            if not given:
                return "quit"  # the terminal is gone
            self._waiting = _KEY.findall(given)
        key = self._waiting.pop(0)
        return _NAMES.get(key, key)
