"""Files of their own for the processes of a mount namespace."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dllm.eval.sandbox.kernel import (
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

# What an interpreter needs of a folder whose other files may be private.
_PARTS = ("bin", "lib", "lib32", "lib64", "openssl", "pyvenv.cfg")
_ENTER = 0o5  # permission of other users to list a folder and go through it


def leave_the_files(root: str, shown: list[str], interpreter: list[str], disk: int) -> str:
    """Makes a new root with the shown paths, read-only, and a /tmp of its own; drops the old one.

    Returns the empty folder to work in: /tmp, or one in it if the interpreter lies there too.
    """
    hidden = NO_SUID | NO_DEVICES
    mount("tmpfs", root, "tmpfs", hidden, "mode=755,size=1m")
    own = Path(root, "tmp")  # first, since the interpreter may lie in the old one
    own.mkdir()
    mount("tmpfs", str(own), "tmpfs", hidden, f"mode=1777,size={disk}")
    for path in [*shown, "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]:
        _show(root, path)
    for folder in interpreter:
        _show_interpreter(root, folder)
    _seal(root, own)
    work = _empty(own, Path(root).name).relative_to(root)
    Path(root, "proc").mkdir()
    # A container that hides parts of its own /proc forbids another one: there is none then.
    with contextlib.suppress(OSError):
        mount("proc", f"{root}/proc", "proc", hidden | NO_EXEC)
    os.chdir(root)
    call("pivot_root", ".", ".")
    call("umount2", ".", DETACH)
    os.chdir("/")
    mount(None, "/", None, REMOUNT | BIND | READ_ONLY | hidden)
    return f"/{work}"


def _show_interpreter(root: str, folder: str) -> None:
    """Shows an interpreter's folder, or what it needs of one that is more than that.

    So are /tmp, where the new root has its own, and what root alone may enter, /root for example:
    root becomes another user, who could not reach the interpreter through it.
    """
    given = Path(folder)
    closed = os.geteuid() == 0 and given.is_dir() and given.stat().st_mode & _ENTER != _ENTER
    if not closed and not Path(root + folder).exists():
        _show(root, folder)
        return
    for part in _PARTS:
        _show(root, f"{folder}/{part}")


def _empty(own: Path, name: str) -> Path:
    """Returns the own folder, or if something is in it a new one inside that everybody may use."""
    if not any(own.iterdir()):
        return own
    inside = own / name
    inside.mkdir()
    inside.chmod(0o777)
    return inside


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


def _seal(root: str, own: Path) -> None:
    """Makes all mounts but one read-only; flags that they came with may not be taken off."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        target = line.split()[1].encode().decode("unicode_escape")
        if target.startswith(f"{root}/") and target != str(own):
            kept = os.statvfs(target).f_flag & (NO_SUID | NO_DEVICES | NO_EXEC)
            mount(None, target, None, REMOUNT | BIND | READ_ONLY | NO_SUID | kept)
