"""The limits of a program in the sandbox, and how it ended."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from typing import Literal

from dllm.eval.sandbox.walls import SIGNALLED, TIMED_OUT

Level = Literal[
    "container",  # files, network, processes and user of its own
    "namespaces",  # the same, but the files of the system can be read
    "limits",  # resource limits alone
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


class SandboxError(OSError):
    """Code cannot be run behind the walls that were asked for; the message says why."""


@dataclass(frozen=True)
class Limits:
    """The most that a program may use."""

    cpu_seconds: int = 3  # of its processor time, so that a busy machine fails nobody
    seconds: float = 10.0  # of the clock
    memory: int = 4 << 30  # bytes of address space; numpy alone takes one or two GiB
    file_size: int = 16 << 20  # bytes of a file
    disk: int = 64 << 20  # bytes of all files, where they are its own
    processes: int = 32  # threads included, where they are its own; else it may start none
    open_files: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name}={value} must be above 0")


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


def read_report(report: str, nonce: str) -> tuple[Kind, str] | None:
    """Returns what was reported with the nonce, None for anything else."""
    try:
        line = json.loads(report)
        if isinstance(line, dict) and secrets.compare_digest(str(line.get("nonce")), nonce):
            return line["kind"], str(line["detail"])
    except (ValueError, TypeError, KeyError):
        pass
    return None


def ending(code: int) -> tuple[Kind, str]:
    """Returns how a program ended that reported nothing, by the exit code of its watcher."""
    if code == TIMED_OUT:
        return "timeout", ""
    if code > SIGNALLED or code < 0:
        number = -code if code < 0 else code - SIGNALLED
        return "killed", f"signal {number}"
    return "exited", "the process ended before the check was over"
