"""The results file: a JSON line a problem, written and synced batch by batch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """One problem, answered under one setting; a line of the results file."""

    run: str  # names the settings; problems of one run are comparable
    id: str
    prompt: str
    text: str
    answer: str
    correct: bool | None  # None: not scored
    prompt_tokens: int
    valid_tokens: int  # before the first end token
    raw_tokens: int  # all that the model committed
    forwards: int  # passes in which the row had something to commit
    row_forwards: int  # the same, with every variant of the row counted
    tokens_fed: float  # columns fed, the batch's divided by its rows
    seconds: float  # the batch's divided by its rows
    finish_reason: str
    settings: dict[str, Any]
    flops: float | None = None  # the batch's divided by its rows; None: not known
    details: dict[str, Any] = field(default_factory=dict)  # how the judge came to it


def read_results(path: Path, run: str | None = None) -> dict[str, Result]:
    """Returns the results in a file by problem id, of one run if it is named.

    A last line that was cut off by a kill is ignored; any other damage is a ValueError.
    """
    if not path.exists():
        return {}
    results: dict[str, Result] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            result = Result(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            if number == len(lines):
                continue
            raise ValueError(
                f"{path} line {number} is not a result ({error}): choose another --output"
            ) from None
        if run is None or result.run == run:
            results[result.id] = result
    return results


def append(path: Path, results: Sequence[Result]) -> None:
    """Writes results and waits until they are on the disk, so that a kill loses none of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(result)) + "\n" for result in results)
        file.flush()
        os.fsync(file.fileno())


def mend(path: Path) -> None:
    """Drops a last line that a kill cut off, so that the next one starts on a line of its own."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
