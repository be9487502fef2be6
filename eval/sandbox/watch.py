"""Watches the process of a program, ends all that it started, and clears its folder away.

Standard library alone: a part of the process that puts up the walls, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

# Exit codes of the process that watches; the last one plus the signal.
TOO_MUCH_DISK, TOO_MUCH_MEMORY, TIMED_OUT, NO_WALLS, SIGNALLED = 122, 123, 124, 125, 128
FILES = 1 << 14  # files and folders that a program may have
_LOOK = 0.025  # seconds between looks at what a program has taken
_PAGE = os.sysconf("SC_PAGE_SIZE")
_FOLDERS = 512  # held open at once while files are counted
_SHARED = ("/tmp", "/var/tmp", "/dev/shm")  # where every user may leave something
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Bounds(NamedTuple):  # a dataclass takes 14 ms to import, once for each program
    """The most that a program and all that it starts may take together."""

    seconds: float
    cpu_seconds: int
    memory: int | None  # bytes; None: it is a single process, which has a limit of its own
    disk: int  # bytes
    folder: str | None  # where its files are counted; None: its file system has a size


def watch(child: int, bounds: Bounds) -> int:
    """Returns how a process ended, or that it was ended since it went over a bound."""
    end = time.monotonic() + bounds.seconds
    pause = _LOOK
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, max(0.0, min(pause, end - time.monotonic())))
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        start = time.monotonic()
        code = TIMED_OUT if start >= end else _exceeded(child, bounds)
        if code:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return code
        pause = max(_LOOK, 10 * (time.monotonic() - start))
    if not os.WIFSIGNALED(status):
        return 0
    number = os.WTERMSIG(status)
    spent = usage.ru_utime + usage.ru_stime
    ran_out = number in (signal.SIGKILL, signal.SIGXCPU) and spent >= 0.9 * bounds.cpu_seconds
    return TIMED_OUT if ran_out else SIGNALLED + number


def end_descendants() -> None:
    """Kills what is left of this process's descendants, which must be its subreaper.

    A process that forks while it is being killed leaves a child, which becomes this process's own.
    """
    while True:
        for process in descendants(os.getpid())[1:]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def descendants(process: int) -> list[int]:
    """Returns a process and all that descend from it."""
    found = [process]
    for each in found:  # grows
        with contextlib.suppress(OSError):
            for thread in Path("/proc", str(each), "task").iterdir():
                found += map(int, (thread / "children").read_bytes().split())
    return found


def _exceeded(child: int, bounds: Bounds) -> int:
    """Returns the code of the bound that a program is over, 0 for none."""
    if bounds.memory is not None and _resident(descendants(child)) > bounds.memory:
        return TOO_MUCH_MEMORY
    try:
        if bounds.folder is not None and not _fits(bounds.folder, bounds.disk):
            return TOO_MUCH_DISK
    except OSError:  # it has closed, moved or replaced its folder, so that none can count it
        return TOO_MUCH_DISK
    return 0


def _resident(processes: list[int]) -> int:
    """Returns the bytes that processes have in memory; shared pages count in each."""
    pages = 0
    for process in processes:
        with contextlib.suppress(OSError):
            pages += int(Path("/proc", str(process), "statm").read_bytes().split()[1])
    return pages * _PAGE


def _fits(folder: str, most: int) -> bool:
    """Returns whether the files below a folder are few and small enough."""
    size = number = 0
    waiting = [os.open(folder, _OPEN)]
    try:
        while waiting:
            here = waiting.pop()
            try:
                with os.scandir(here) as entries:
                    for entry in entries:
                        with contextlib.suppress(OSError):  # gone since, or closed to this user
                            size += entry.stat(follow_symlinks=False).st_blocks * 512
                            if entry.is_dir(follow_symlinks=False):
                                waiting.append(os.open(entry.name, _OPEN, dir_fd=here))
                        number += 1
                        if size > most or number > FILES or len(waiting) > _FOLDERS:
                            return False
            finally:
                os.close(here)
    finally:
        for each in waiting:
            os.close(each)
    return True


def sweep(user: int) -> None:
    """Deletes what a user, who exists for one program alone, left where every user may write."""
    for folder in _SHARED:
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_uid != user:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        remove(entry.path)
                    else:
                        Path(entry.path).unlink()


def remove(folder: str) -> None:
    """Deletes a folder of any depth and width; follows no link.

    Folders are moved up before they are emptied, so that no path grows and no folder stays open.
    Raises OSError if something cannot be deleted.
    """
    _open_up(folder, None)
    top = os.open(folder, _OPEN)
    prefix = os.urandom(8).hex()  # no name that the program could have taken
    names = (f"{prefix}{number}" for number in count())
    try:
        while left := os.listdir(top):  # noqa: PTH208 - of a descriptor
            for name in left:
                _delete(name, top, names)
    finally:
        os.close(top)
    Path(folder).rmdir()


def _delete(name: str, top: int, names: Iterator[str]) -> None:
    """Deletes an entry of the top folder; the folders in it become its neighbours."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=top)
        return
    _open_up(name, top)
    here = os.open(name, _OPEN, dir_fd=top)
    try:
        while left := os.listdir(here):  # noqa: PTH208 - of a descriptor
            for entry in left:
                if stat.S_ISDIR(os.stat(entry, dir_fd=here, follow_symlinks=False).st_mode):
                    _open_up(entry, here)
                    os.rename(entry, next(names), src_dir_fd=here, dst_dir_fd=top)
                else:
                    os.unlink(entry, dir_fd=here)
    finally:
        os.close(here)
    os.rmdir(name, dir_fd=top)


def _open_up(name: str, parent: int | None) -> None:
    """Lets the owner of a folder go through it and empty it; root may anyway."""
    if os.geteuid() == 0:
        return
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=parent)
    try:
        Path("/proc/self/fd", str(place)).chmod(0o700)  # of this folder, whatever its name is now
    finally:
        os.close(place)
