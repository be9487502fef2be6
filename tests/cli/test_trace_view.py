"""`dllm trace` in a terminal: keys move it, and the terminal is as before when it ends."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dllm.trace.file import write_records
from tests.support.processes import LISTENING
from tests.support.traces import BY_HAND

termios = pytest.importorskip("termios", reason="this system has no terminals of this kind")
fcntl = pytest.importorskip("fcntl")

pytestmark = pytest.mark.slow

PATIENCE = 60  # seconds
SHOWN, HIDDEN = b"\x1b[?1049h", b"\x1b[?1049l"  # the second screen of a terminal


class Terminal:
    """The command in a terminal of 100 columns and 24 lines."""

    def __init__(self, path: Path) -> None:
        self.number, inside = os.openpty()
        size = struct.pack("HHHH", 24, 100, 0, 0)
        fcntl.ioctl(inside, termios.TIOCSWINSZ, size)
        self.before = termios.tcgetattr(self.number)
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        # Who opens a terminal in a session of its own gets it, with Ctrl-C.
        opening = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(inside)]
        command = [sys.executable, "-c", LISTENING, "trace", str(path)]
        self.process = subprocess.Popen(
            [*opening, *command], env=environment, start_new_session=True
        )
        self.inside = inside  # open, or reading would fail before the command has opened it
        self.seen = b""

    def until(self, text: str) -> None:
        """Reads until the text has come; what came before is forgotten."""
        end = time.monotonic() + PATIENCE
        while text.encode() not in self.seen:
            assert time.monotonic() < end, self.seen.decode(errors="replace")
            if select.select([self.number], [], [], 0.2)[0]:
                self.seen += os.read(self.number, 65536)
        self.seen = self.seen.partition(text.encode())[2]

    def press(self, keys: str) -> None:
        os.write(self.number, keys.encode())

    def end(self) -> int:
        """Waits for the end; the terminal must be as it was."""
        self.until(HIDDEN.decode())
        code = self.process.wait(PATIENCE)
        after = termios.tcgetattr(self.number)
        os.close(self.number)
        os.close(self.inside)
        assert after == self.before
        return code


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    path = tmp_path / "rows.jsonl"
    write_records(path, [BY_HAND])
    started = Terminal(path)
    started.until(SHOWN.decode())
    started.until("step 0 of 4")
    return started


def test_keys_walk_through_the_steps(terminal: Terminal) -> None:
    for keys, said in [
        ("\x1b[C", "step 1 of 4"),
        ("\x1b[C\x1b[C", "step 3 of 4"),
        ("\x1b[D", "step 2 of 4"),
        ("\x1b[F", "step 4 of 4"),
        ("c", "confidence 0"),
        ("\x1b[H", "step 0 of 4"),
        (" ", "step 4 of 4"),
    ]:
        terminal.press(keys)
        terminal.until(said)
    terminal.press("q")
    assert terminal.end() == 0


def test_ctrl_c_gives_the_terminal_back(terminal: Terminal) -> None:
    terminal.press("\x03")
    assert terminal.end() == 130
