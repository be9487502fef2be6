"""Automata that were made before: in memory, and on the disk under a digest."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from dllm.constraints.automaton import DEAD, NEVER, TokenAutomaton

LOGGER = logging.getLogger(__name__)
Value = TypeVar("Value")
_FOLDER: Path | None = None  # as `cache_folder` was told


class Memory(Generic[Value]):
    """The values used last, so many of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[str, Value] = OrderedDict()

    def get(self, name: str, make: Callable[[], Value]) -> Value:
        """Returns the value of a name, made if it is not there."""
        if name not in self._values:
            self._values[name] = make()
            if len(self._values) > self.most:
                self._values.popitem(last=False)
        self._values.move_to_end(name)
        return self._values[name]

    def clear(self) -> None:
        """Forgets all."""
        self._values.clear()


def cache_folder(path: str | Path | None) -> None:
    """Has compiled languages kept in a folder from now on; None: in the usual one.

    That is `dllm/constraints` of XDG_CACHE_HOME, the system's own name for it, else of ~/.cache.
    """
    global _FOLDER  # noqa: PLW0603 one for the process, as the memory of automata is
    _FOLDER = None if path is None else Path(path).expanduser()


def folder() -> Path:
    """Returns where automata are kept."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "dllm" / "constraints" if _FOLDER is None else _FOLDER


@cache
def maker() -> str:
    """Returns a digest of what makes automata: this package's source, and Python's own patterns."""
    return f"{digest_of(Path(__file__).parent)} {sys.version_info[:2]}"


def digest_of(package: Path) -> str:
    """Returns a digest of the source text of all modules of a package, folders in it included."""
    found = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        text = hashlib.sha256(file.read_bytes()).hexdigest()
        found.update(f"{file.relative_to(package).as_posix()} {text}\n".encode())
    return found.hexdigest()


def on_disk(name: str, make: Callable[[], TokenAutomaton]) -> TokenAutomaton:
    """Returns the automaton that a file holds; makes it and the file if there is none.

    A damaged file is made again. Where no file can be written, that is logged as a warning.
    """
    file = folder() / f"{name}.npz"
    if file.exists():
        try:
            return _read(file)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            LOGGER.warning("%s is damaged and is made again: %s", file, error)
    made = make()
    try:
        _write(file, made)
    except OSError as error:
        LOGGER.warning("a compiled constraint is not kept: %s", error)
    return made


def _write(file: Path, automaton: TokenAutomaton) -> None:
    """Writes all of a file or nothing: another process may read or write it meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(
                stream,
                class_of=automaton.class_of,
                table=automaton.table,
                accepting=automaton.accepting,
                start=np.array(automaton.start, dtype=np.int64),
                shortest=automaton.shortest,
            )
        Path(temporary).replace(file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _read(file: Path) -> TokenAutomaton:
    with np.load(file, allow_pickle=False) as held:
        found = TokenAutomaton(
            held["class_of"],
            held["table"],
            held["accepting"],
            int(held["start"]),
            held["shortest"],
        )
    if not _is_whole(found):
        raise ValueError("its arrays do not belong together")
    return found


def _is_whole(automaton: TokenAutomaton) -> bool:
    """Whether no array names a state or a class that there is not."""
    table, classes = automaton.table, automaton.class_of
    if table.ndim != 2 or classes.ndim != 1 or not table.size or not classes.size:
        return False
    if {table.dtype, classes.dtype, automaton.shortest.dtype} != {np.dtype(np.int32)}:
        return False
    states = len(table)
    return bool(
        automaton.accepting.shape == automaton.shortest.shape == (states,)
        and automaton.accepting.dtype == np.bool_
        and 0 <= automaton.start < states
        and table.min() >= DEAD
        and table.max() < states
        and classes.min() >= NEVER
        and classes.max() < table.shape[1]
    )
