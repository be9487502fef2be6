"""The one process that may write a results file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dllm.eval.run.results import Result, append, mend

try:
    import fcntl
except ModuleNotFoundError:  # Windows has no such locks: two writers are not told apart there
    fcntl = None  # type: ignore[assignment]


class Writer:
    """Appends to a results file, which no other process may write until `close`.

    The lock is the kernel's, so that a kill lifts it; it begins as soon as there is a file, and no
    file is made before there is a line for it. Raises BusyError if another process has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: IO[bytes] | None = None
        if path.exists():
            self._hold()

    def append(self, results: Sequence[Result]) -> None:
        """Writes results and waits until they are on the disk."""
        if self._held is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._hold()
        mend(self.path)
        append(self.path, results)

    def remove(self) -> None:
        """Deletes the file."""
        self.path.unlink()
        self.close()

    def close(self) -> None:
        """Lets others write."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _hold(self) -> None:
        held = self.path.open("ab")
        try:
            if fcntl is not None:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.close()
            raise BusyError(
                f"another process is writing {self.path}: wait for it, stop it, or choose "
                "another --output"
            ) from None
        self._held = held


class BusyError(OSError):
    """A results file is being written by another process."""


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    """Opens a results file for writing and lets it go at the end."""
    writer = Writer(path)
    try:
        yield writer
    finally:
        writer.close()
