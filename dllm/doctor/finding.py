"""Findings of an examination, and how the checks that yield them run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from dllm.models.config import CheckpointError, printable

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    level: Level
    text: str  # what was found
    way_out: str = ""  # what to do about it


Check = Callable[[], Iterable[Finding]]


def run(checks: Iterable[tuple[str, Check]]) -> Iterator[Finding]:
    """Yields what each named check finds; one that breaks down is a failure, not an end.

    What several checks break down on is reported once.
    """
    reported: set[str] = set()
    for subject, check in checks:
        try:
            yield from check()
        except CheckpointError as error:
            text = str(error)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 a broken file may even panic a Rust library
            text = printable(f"{type(error).__name__}: {str(error).strip() or 'no message'}")
        else:
            continue
        if text not in reported:
            yield failure(subject, text)
        reported.add(text)


def ok(subject: str, text: str) -> Finding:
    """Returns a finding that needs nothing done."""
    return Finding(subject, "ok", text)


def warning(subject: str, text: str, way_out: str = "") -> Finding:
    """Returns a finding that makes something slow or impossible."""
    return Finding(subject, "warning", text, way_out)


def failure(subject: str, text: str, way_out: str = "") -> Finding:
    """Returns a finding with which nothing is decoded."""
    return Finding(subject, "failure", text, way_out)
