"""The kernel's calls that put walls around a process, from the headers of clone(2) and mount(2)."""

from __future__ import annotations

import ctypes
import os
from typing import Any

NEW_MOUNTS, NEW_NAMES, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = (
    *(0x20000, 0x4000000, 0x8000000, 0x10000000),
    *(0x20000000, 0x40000000),
)
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, REMOUNT = 1, 2, 4, 8, 32
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
DETACH = 2
DIE_WITH_PARENT, NO_NEW_PRIVILEGES = 1, 38

LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """Calls a function of the C library; raises OSError unless it returns 0."""
    given = [a.encode() if isinstance(a, str) else a for a in arguments]
    if getattr(LIBC, name)(*given) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Mounts a file system, binds a path, or changes the flags of what is there."""
    call("mount", source, target, kind, ctypes.c_ulong(flags), data or None)


def prctl(option: int, value: int) -> None:
    """Sets an attribute of this process, if the kernel knows it."""
    LIBC.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)
