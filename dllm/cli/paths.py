"""Files that a command is given: whether they can be written, and what the system's errors mean."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_BEGINNING = 1 << 16  # characters in which a file says what it is
_MEANING = {
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "that is a folder: name a file",
    errno.ENOTDIR: "a part of that path is a file, where a folder is needed: choose another path",
    errno.EEXIST: "a file is there, where a folder is needed: choose another path",
    errno.EACCES: "this user may not read or write it: change its permissions or choose another "
    "path",
    errno.EPERM: "the system does not allow this: choose another path",
    errno.EROFS: "its disk is read-only: choose another path",
    errno.ENOSPC: "its disk is full: make room, or choose another path",
}


def said(error: Exception) -> str:
    """Returns an error in words; the system's own ones name a path and what to do about it."""
    if isinstance(error, OSError) and error.filename is not None and error.errno in _MEANING:
        return f"{os.fspath(error.filename)}: {_MEANING[error.errno]}"
    return str(error)


def check_writable(path: Path | None, option: str, mark: str = "") -> None:
    """Checks that a file can be written, so that no work is done for one that cannot.

    A file that is there already must have `mark` near its beginning, else it is not ours to write
    over. Raises ValueError with the option's name. Leaves nothing behind; a folder is made later.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file")
    nearest = next(part for part in path.absolute().parents if part.exists())
    if not nearest.is_dir():
        raise ValueError(f"{option} {path}: {nearest} is a file, where a folder is needed")
    if not os.access(path if path.exists() else nearest, os.W_OK):
        raise ValueError(f"{option} {path}: this user may not write there: choose another path")
    if mark and path.exists() and path.stat().st_size:
        with path.open(encoding="utf-8", errors="replace") as file:
            if mark not in file.read(_BEGINNING):
                raise ValueError(f"{option} {path} exists and holds something else: choose another")
