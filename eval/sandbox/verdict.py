"""The limits of a program in the sandbox, and how it ended."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Literal

from dllm.eval.sandbox.child import DETAIL
from dllm.eval.sandbox.watch import FILES, SIGNALLED, TIMED_OUT, TOO_MUCH_DISK, TOO_MUCH_MEMORY
from dllm.options import Count, Options, Positive, Range

Size = Annotated[int, Range(1, 2**50)]  # bytes

Level = Literal[
    "container",  # files, network, processes and user of its own
    "namespaces",  # the same, but files outside of home can be read
    "limits",  # no namespace: what the kernel refuses it, and resource limits
]
Kind = Literal[
    "passed",
    "assertion",
    "exception",
    "syntax",
    "timeout",
    "memory",
    "exited",  # ended before the check was over
    "killed",  # by a signal
]
# What a program may say of itself. It passed if it has the token, the rest is its watcher's word.
CLAIMS: tuple[Kind, ...] = ("assertion", "exception", "syntax", "memory", "exited")
REPORT = 1 << 13  # bytes of the longest report: characters of up to ten bytes


class SandboxError(OSError):
    """Code cannot be run behind the walls that were asked for; the message says why."""


@dataclass(frozen=True)
class Limits(Options):
    """The most that a program may use."""

    cpu_seconds: Count = 3  # of its processor time, so that a busy machine fails nobody
    seconds: Positive = 10.0  # of the clock
    memory: Size = 4 << 30  # bytes of address space, numpy alone takes one or two GiB; of its
    # processes together, what is in memory
    file_size: Size = 16 << 20  # bytes of a file
    disk: Size = 64 << 20  # bytes of all files
    processes: Count = 32  # threads included; at `limits` it may start none
    open_files: Count = 64


@dataclass(frozen=True)
class Verdict:
    """How a program ended, and behind which walls."""

    kind: Kind
    detail: str  # the error's text
    level: Level
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the program reached its end, checks included."""
        return self.kind == "passed"


def read_report(report: bytes, token: bytes) -> tuple[Kind, str]:
    """Returns how a program ended by what was reported, which may be any bytes at all."""
    if secrets.compare_digest(report, token):
        return "passed", ""
    if not report:
        return "exited", "the process ended before the check was over"
    name, _, detail = report.partition(b"\n")
    for kind in CLAIMS:
        if len(report) <= REPORT and name == kind.encode():
            text = "".join(map(_shown, detail.decode("utf-8", "replace")))
            return kind, text[:DETAIL]
    return "exited", "a broken report"


def ending(code: int, limits: Limits) -> tuple[Kind, str] | None:
    """Returns how a program was ended, by the exit code of its watcher; None if by itself."""
    if code == 0:
        return None
    if code == TIMED_OUT:
        return "timeout", ""
    if code == TOO_MUCH_MEMORY:
        return "memory", f"its processes took more than {limits.memory} bytes together"
    if code == TOO_MUCH_DISK:
        return "killed", f"its files took more than {limits.disk} bytes, or are more than {FILES}"
    number = -code if code < 0 else code - SIGNALLED
    return ("killed", f"signal {number}") if number > 0 else ("killed", f"watcher's code {code}")


def _shown(character: str) -> str:
    """Returns a character as it is if it does nothing to a terminal, else its escape."""
    if character.isprintable() or character in "\n\t":
        return character
    return character.encode("unicode_escape").decode("ascii")
