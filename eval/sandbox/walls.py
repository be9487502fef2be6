"""Puts walls around the process that runs model-written code, watches it and ends it in time.

Needs the standard library alone, in a process of its own that `dllm.eval.sandbox` starts. It stays
outside of the walls; the code runs inside, in a fresh interpreter with `child.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

# Of the headers of clone(2), mount(2) and prctl(2).
NEW_MOUNTS, NEW_NAMES, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = (
    *(0x20000, 0x4000000, 0x8000000, 0x10000000),
    *(0x20000000, 0x40000000),
)
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, REMOUNT = 1, 2, 4, 8, 32
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
DETACH = 2
DIE_WITH_PARENT, NO_NEW_PRIVILEGES = 1, 38
LIBC = ctypes.CDLL(None, use_errno=True)

TIMED_OUT, NO_WALLS, SIGNALLED = 124, 125, 128  # exit codes; the last one plus the signal
NOBODY = 65534  # whom root becomes
INSIDE = 1000  # the user and group inside of the walls, who is not root there
PAUSE = 0.005  # seconds between looks at the process
# What an interpreter needs of a folder whose other files may be private.
_PARTS = ("bin", "lib", "lib32", "lib64", "openssl", "pyvenv.cfg")
_ENTER = 0o5  # permission of other users to list a folder and go through it


def main(order: dict[str, Any]) -> int:
    """Runs the child behind walls and returns how it ended; says on `report` why it could not."""
    prctl(DIE_WITH_PARENT, signal.SIGKILL)
    reading, writing = os.pipe()  # closed by a successful exec, so that the code cannot write to it
    try:
        _give_away(order["work"])
        if order["level"] != "limits":
            _separate()
        child = os.fork()
    except OSError as error:
        os.write(order["report"], str(error).encode())
        return NO_WALLS
    if child == 0:
        try:
            _enter(order)
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(NO_WALLS)
    os.close(writing)
    problem = os.read(reading, 1000)
    if problem:
        os.write(order["report"], problem)
    os.close(order["report"])
    code = _watch(child, order["seconds"], order["cpu_seconds"])
    return NO_WALLS if problem else code


def _give_away(work: str) -> None:
    if os.geteuid() == 0:
        os.chown(work, NOBODY, NOBODY)


def _separate() -> None:
    """Leaves for namespaces of its own; a process that stays behind says who is who there."""
    waiting, go = os.pipe()
    process = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        code = 1
        try:
            if os.read(waiting, 1):
                _name_users(Path("/proc", str(process)))
                code = 0
        finally:
            os._exit(code)
    try:
        call("unshare", NEW_USER | NEW_MOUNTS | NEW_PIDS | NEW_NETWORK | NEW_IPC | NEW_NAMES)
        os.write(go, b".")
    finally:
        os.close(go)
        _, status = os.waitpid(helper, 0)
    if status != 0:
        raise PermissionError("the users of the new namespace could not be named")


def _name_users(process: Path) -> None:
    """Writes which users the new namespace knows.

    Root keeps its place, since only root may see the folders of an interpreter under /root, and
    gets a second user to become, whose processes are counted: those of root never are.
    """
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        users = groups = f"0 0 1\n{INSIDE} {NOBODY} 1\n"
    else:
        users, groups = f"{INSIDE} {user} 1\n", f"{INSIDE} {group} 1\n"
        (process / "setgroups").write_text("deny")
    (process / "uid_map").write_text(users)
    (process / "gid_map").write_text(groups)


def _enter(order: dict[str, Any]) -> None:
    """Becomes the child: no files but those shown, no privileges, no environment."""
    level, work = order["level"], order["work"]
    source = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
    if level != "limits":
        mount("none", "/", None, RECURSIVE | PRIVATE)
    if level == "container":
        work = leave_the_files(work, order["shown"], order["interpreter"], order["disk"])
    os.chdir(work)
    if os.geteuid() == 0:
        other = NOBODY if level == "limits" else INSIDE
        os.setgroups([])
        os.setresgid(other, other, other)
        os.setresuid(other, other, other)
    prctl(NO_NEW_PRIVILEGES, 1)
    prctl(DIE_WITH_PARENT, signal.SIGKILL)
    os.set_inheritable(order["report"], True)
    command = [order["python"], "-I", "-B", "-c", source, str(order["report"])]
    os.execve(command[0], command, {})


def _watch(child: int, seconds: float, cpu_seconds: float) -> int:
    end = time.monotonic() + seconds
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return TIMED_OUT
        time.sleep(PAUSE)
    if not os.WIFSIGNALED(status):
        return 0
    number = os.WTERMSIG(status)
    spent = usage.ru_utime + usage.ru_stime
    ran_out = number in (signal.SIGKILL, signal.SIGXCPU) and spent >= 0.9 * cpu_seconds
    return TIMED_OUT if ran_out else SIGNALLED + number


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
    path = Path(folder)
    closed = os.geteuid() == 0 and path.is_dir() and path.stat().st_mode & _ENTER != _ENTER
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
            flags = os.statvfs(target).f_flag & (NO_SUID | NO_DEVICES | NO_EXEC)
            mount(None, target, None, REMOUNT | BIND | READ_ONLY | NO_SUID | flags)


def call(name: str, *arguments: Any) -> None:
    """Calls a function of the C library; raises OSError unless it returns 0."""
    encoded = [a.encode() if isinstance(a, str) else a for a in arguments]
    if getattr(LIBC, name)(*encoded) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Mounts a file system, binds a path, or changes the flags of what is there."""
    call("mount", source, target, kind, ctypes.c_ulong(flags), data or None)


def prctl(option: int, value: int) -> None:
    """Sets an attribute of this process, if the kernel knows it."""
    LIBC.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)
