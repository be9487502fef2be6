"""Files of their own for the processes of a mount namespace."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dllm.eval.sandbox_kernel import (
    BIND,
    DETACH,
    NO_DEVICES,
    NO_EXEC,
    NO_SUID,
    READ_ONLY,
    RECURSIVE,
    REMOUNT,
    call,
    mount,
)


def leave_the_files(root: str, shown: list[str], disk: int) -> None:
    """Makes a new root with the shown paths, read-only, and an empty /tmp; drops the old one."""
    hidden = NO_SUID | NO_DEVICES
    mount("tmpfs", root, "tmpfs", hidden, "mode=755,size=1m")
    for path in [*shown, "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]:
        _show(root, path)
    _seal(root)
    Path(root, "tmp").mkdir()
    mount("tmpfs", f"{root}/tmp", "tmpfs", hidden, f"mode=1777,size={disk}")
    Path(root, "proc").mkdir()
    # A container that hides parts of its own /proc forbids another one: there is none then.
    with contextlib.suppress(OSError):
        mount("proc", f"{root}/proc", "proc", hidden | NO_EXEC)
    os.chdir(root)
    call("pivot_root", ".", ".")
    call("umount2", ".", DETACH)
    os.chdir("/")
    mount(None, "/", None, REMOUNT | BIND | READ_ONLY | hidden)


def _show(root: str, path: str) -> None:
    target = Path(root + path)
    if target.exists() or not Path(path).exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if Path(path).is_symlink():
        target.symlink_to(Path(path).readlink())
        return
    target.mkdir() if Path(path).is_dir() else target.touch()
    mount(path, str(target), None, BIND | RECURSIVE)


def _seal(root: str) -> None:
    """Makes all mounts below read-only; flags that they came with may not be taken off."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        target = line.split()[1].encode().decode("unicode_escape")
        if target.startswith(f"{root}/"):
            kept = os.statvfs(target).f_flag & (NO_SUID | NO_DEVICES | NO_EXEC)
            mount(None, target, None, REMOUNT | BIND | READ_ONLY | NO_SUID | kept)
