"""The results file: a JSON line a problem, synced as soon as it is answered, by one process."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, Any

from dllm.eval.tasks.task import Problem
from dllm.options import Range, check, checked
from dllm.reading import parse_json
from dllm.settings import Settings

try:
    import fcntl
except ModuleNotFoundError:  # Windows has no such locks: two writers are not told apart there
    fcntl = None  # type: ignore[assignment]

Number = Annotated[int, Range(0, 2**62)]
Figure = Annotated[float, Range(0, 1e30)]
Samples = Annotated[int, Range(1, 2**14)]
_MOST_SAMPLES = 2**22  # of all problems together, which are listed before the first is answered

_BEGINNING = '{"run": "'  # of every line
_MARK = "#"  # between a problem's id and the number of a sample
_BLOCK = 1 << 16  # bytes read at a time from the end


class RefusedError(ValueError):
    """The settings do not suit the model or the problems; the message says why."""


class BusyError(OSError):
    """A results file is being written by another process."""


class LostProcessError(ConnectionError):
    """Another process of the launch ended before its part was done."""


@dataclass(frozen=True)
class Result:
    """One problem, answered under one setting; a line of the results file."""

    run: str  # names the settings; problems of one run are comparable
    id: str
    prompt: str
    text: str
    answer: str
    correct: bool | None  # None: not scored
    prompt_tokens: Number
    valid_tokens: Number  # before the first end token
    raw_tokens: Number  # all that the model committed
    forwards: Number  # passes in which the row had something to commit
    row_forwards: Number  # the same, with every variant of the row counted
    # Shares: what a pass costs is divided evenly by the rows that are under way in it.
    tokens_fed: Figure  # columns fed
    seconds: Figure  # of decoding
    finish_reason: str
    settings: dict[str, Any]
    flops: Figure | None = None  # a share too; None: not known
    details: dict[str, Any] = field(default_factory=dict)  # how the judge came to it
    trace: dict[str, Any] | None = None  # a `TraceRecord` as JSON, if the run keeps traces
    # Lines of before these were written have None.
    prefill_seconds: Figure | None = None  # the part of `seconds` that the row's first pass took
    latency: Figure | None = None  # seconds of decoding from its first pass to its last
    rows_fed: Figure | None = None  # rows over all passes; a share
    peak_memory: Number | None = None  # bytes of device memory; None on a CPU
    extracted: bool | None = None  # whether an answer was found; None: the judge does not say
    start: str | None = None  # names the `Start` in the record beside the file
    finished: str | None = None  # UTC, ISO 8601
    problem: str | None = None  # the id of the problem that this is a sample of
    steps: Figure | None = None  # of the batch; a share
    # None without a constraint.
    forced: Number | None = None  # tokens that it left no choice of, beside the scheduler's
    nats_lost: Figure | None = None  # by how much its tokens are less probable, see `Toll.lost`
    constraint_seconds: Figure | None = None  # of `seconds`, a share; None too: nothing tells
    tokens_needed: Figure | None = None  # of `tokens_fed`, what was no padding; a share

    @property
    def problem_id(self) -> str:
        """The id of the problem, which lines of before it was written have in front of a mark."""
        return problem_id(self.id) if self.problem is None else self.problem

    @property
    def is_first_sample(self) -> bool:
        """Whether it is the first answer to its problem."""
        return self.id in (self.problem_id, f"{self.problem_id}{_MARK}0")


def read_results(path: Path, run: str | None = None) -> dict[str, Result]:
    """Returns the results in a file by problem id, of one run if it is named.

    A last line that was cut off by a kill is ignored; any other damage is a ValueError.
    """
    return {result.id: result for result in read_lines(path) if run in (None, result.run)}


def read_lines(path: Path) -> Iterator[Result]:
    """Yields the results of all lines; of two with one run and id the later one counts."""
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not a file of results of `dllm eval` ({error}): choose another file"
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield parse_result(line)
        except ValueError as error:
            broken = isinstance(error.__cause__, json.JSONDecodeError | TypeError)
            if broken and number == len(lines) and _is_cut(line):
                continue
            raise ValueError(
                f"{path} line {number} is not a result of `dllm eval` ({error}): choose another "
                "file"
            ) from None


def parse_result(line: str | bytes) -> Result:
    """Returns the result of a line; raises ValueError for what is none, such as a NaN figure."""
    value = parse_json(line, "it", allow_nan=True)  # of a trace, whose confidence may be none
    try:
        result = Result(**value)
    except TypeError as error:
        raise ValueError("it has other fields") from error
    check(result)
    return result


def append(path: Path, results: Sequence[Result]) -> None:
    """Writes results and waits until they are on the disk, so that a kill loses none of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_lines(path, map(asdict, results))


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a line of JSON for each mapping and waits until they are on the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def mend(path: Path) -> None:
    """Drops a last line that a kill cut off, so that the next one starts on a line of its own."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        tail, block = b"", end
        while block and b"\n" not in tail:
            block = max(block - _BLOCK, 0)
            file.seek(block)
            tail = file.read(end - block - len(tail)) + tail
        last = tail.rpartition(b"\n")[2]
        if last and _is_cut(last.decode("utf-8", "replace")):
            file.truncate(end - len(last))


def _is_cut(line: str) -> bool:
    """Whether it is the beginning of a result, not something else that must not be lost."""
    return line[: len(_BEGINNING)] == _BEGINNING[: len(line)]


class Writer:
    """Appends to a results file, which no other process may write until `close`.

    The lock is the kernel's, so that a kill lifts it; it begins as soon as there is a file, and no
    file is made before there is a line for it. Raises BusyError if another process has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None
        if path.exists():
            self._take()

    def append(self, results: Sequence[Result]) -> None:
        """Writes results and waits until they are on the disk."""
        if self._lock is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._take()
        mend(self.path)
        append(self.path, results)

    def remove(self) -> None:
        """Deletes the file."""
        self.path.unlink()
        self.close()

    def close(self) -> None:
        """Lets others write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take(self) -> None:
        lock = self.path.open("ab")
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise BusyError(
                f"another process is writing {self.path}: wait for it, stop it, or choose "
                "another --output"
            ) from None
        self._lock = lock


def set_aside(path: Path) -> Path | None:
    """Renames a file or folder to `NAME.old`, or the next free name; None where there is none.

    Raises BusyError if it is a results file that another process writes.
    """
    if not path.exists():
        return None
    if path.is_file():
        Writer(path).close()
    names = (f"{path.name}.old{number or ''}" for number in itertools.count())
    free = next(new for name in names if not (new := path.with_name(name)).exists())
    return path.rename(free)


def writing(path: Path) -> closing[Writer]:
    """Opens a results file for writing and lets it go at the end."""
    return closing(Writer(path))


def sampled(problems: Sequence[Problem], count: int, settings: Settings) -> list[Problem]:
    """Returns every problem `count` times, with ids of their own, so with seeds of their own.

    The first sample has the problem's id: asking for more samples later goes on with those that
    are there. Raises ValueError where all samples would be the same.
    """
    count = checked("samples", count, Samples)
    if count > 1 and settings.temperature == 0:
        raise ValueError(
            f"samples={count} at temperature=0 would all be the same: set --temperature above 0"
        )
    if count * len(problems) > _MOST_SAMPLES:
        raise ValueError(
            f"samples={count} of {len(problems)} problems are more than {_MOST_SAMPLES} answers: "
            "take fewer of either"
        )
    return [_sample(problem, number) for problem in problems for number in range(count)]


def _sample(problem: Problem, number: int) -> Problem:
    """Returns a sample; of an id that ends like a sample's the first has a number as well.

    So no sample has the id of another problem.
    """
    if number == 0 and problem_id(problem.id) == problem.id:
        return problem
    return replace(problem, id=f"{problem.id}{_MARK}{number}", sample_of=problem.id)


def asked(problem: Problem) -> Problem:
    """Returns the problem that a sample is of, as the judge knows it."""
    if problem.sample_of is None:
        return problem
    return replace(problem, id=problem.sample_of, sample_of=None)


def problem_id(sample_id: str) -> str:
    """Returns the id of the problem that a sample is of, as far as its own id says so."""
    base, mark, number = sample_id.rpartition(_MARK)
    return base if mark and number.isdigit() else sample_id
