"""What is the same for a whole run, written once beside its results."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dllm.eval.run.environment import Environment
from dllm.eval.run.results import read_results


@dataclass(frozen=True)
class Start:
    """A command that decoded problems of a run; one that was killed is followed by another."""

    id: str  # what the lines of this start have as `start`
    began: str  # UTC, ISO 8601
    batch_size: int  # rows decoded at a time, by each process
    prompts: str  # digest of all problems and prompts
    processes: tuple[Environment, ...]  # one for each process
    # Whether waiting problems took the places of finished ones; None: before it was noted.
    continuous: bool | None = None

    @property
    def weights(self) -> str | None:
        """The digest of the model's weights."""
        return self.processes[0].weights


@dataclass(frozen=True)
class RunRecord:
    """A run: what decides its answers, and every start that made some."""

    settings: Mapping[str, Any]
    task: Mapping[str, Any] = field(default_factory=dict)  # what the task says of itself
    starts: tuple[Start, ...] = ()


def beside(output: Path) -> Path:
    """Returns where the records of a results file are: `rows.jsonl` has `rows.runs.json`."""
    return output.with_name(f"{output.stem}.runs.json")


def read_records(output: Path) -> dict[str, RunRecord]:
    """Returns the records of the runs in a results file by their names; none if there are none.

    Raises ValueError for a file that is something else.
    """
    path = beside(output)
    if not path.exists():
        return {}
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return {name: _record(run) for name, run in runs.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a record of runs ({error!r}): move it away, and starts from now on "
            "are recorded anew; the results are not in it"
        ) from None


def note(output: Path, name: str, record: RunRecord) -> None:
    """Adds a run's record, or replaces it; a kill leaves the file before or after, not between."""
    records = read_records(output) | {name: record}
    path = beside(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        runs = {run: asdict(known) for run, known in records.items()}
        json.dump({"runs": runs}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def begun(output: Path, name: str, fresh: RunRecord) -> RunRecord:
    """Returns the record of a run in a file with a new start, the only one of `fresh`, added.

    Raises ValueError if other weights made the results that are there.
    """
    (start,) = fresh.starts
    old = read_records(output).get(name, RunRecord({})).starts
    made = {result.start for result in read_results(output, name).values()}
    for one in old:
        if one.id in made and None not in (one.weights, start.weights):
            _check_weights(output, one, start)
    return replace(fresh, starts=(*old, start))


def new_start(batch_size: int, prompts: str, processes: Sequence[Environment]) -> Start:
    """Returns a start that begins now."""
    return Start(secrets.token_hex(4), now(), batch_size, prompts, tuple(processes))


def now() -> str:
    """Returns the time as it is recorded."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _record(run: Mapping[str, Any]) -> RunRecord:
    starts = [
        Start(**{**start, "processes": tuple(Environment(**one) for one in start["processes"])})
        for start in run["starts"]
    ]
    return RunRecord(run["settings"], run["task"], tuple(starts))


def _check_weights(output: Path, old: Start, new: Start) -> None:
    if old.weights != new.weights:
        raise ValueError(
            f"{output} holds results of this run that were made with other weights (digest "
            f"{old.weights} on {old.began[:10]}, now {new.weights}): choose another --output"
        )
