"""Automata that were made before: in memory, and on the disk under a digest."""

from __future__ import annotations

import logging
import os
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from dllm.constraints.automaton import DEAD, NEVER, TokenAutomaton

LOGGER = logging.getLogger(__name__)
Value = TypeVar("Value")


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


def folder() -> Path:
    """Returns where automata are kept.

    That is `constraints` in the folder that the environment variable DLLM_CACHE names, else in
    `dllm` of XDG_CACHE_HOME, else in ~/.cache/dllm.
    """
    named = os.environ.get("DLLM_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(named).expanduser() if named else Path(caches) / "dllm") / "constraints"


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
