"""Puts walls around the process that runs model-written code, watches it and ends it in time.

Needs the standard library alone, in a process of its own that `dllm.eval.sandbox` starts. It stays
outside of the walls; the code runs inside, in a fresh interpreter with `child.py`.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
from pathlib import Path
from typing import Any

from dllm.eval.sandbox.refusals import LIBC, filter_calls, write_only_in
from dllm.eval.sandbox.watch import FILES, NO_WALLS, Bounds, end_descendants, watch

# Of the headers of clone(2), mount(2) and prctl(2).
NEW_MOUNTS, NEW_NAMES, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = (
    *(0x20000, 0x4000000, 0x8000000, 0x10000000),
    *(0x20000000, 0x40000000),
)
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, REMOUNT = 1, 2, 4, 8, 32
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
DETACH = 2
DIE_WITH_PARENT, SUBREAPER, NO_NEW_PRIVILEGES = 1, 36, 38

INSIDE = 1000  # the user and group inside of the walls, who is not root there
# What an interpreter needs of a folder whose other files may be private.
_PARTS = ("bin", "lib", "lib32", "lib64", "openssl", "pyvenv.cfg")
_DEVICES = ("null", "zero", "urandom", "random")
_ENTER = 0o5  # permission of other users to list a folder and go through it


def main(order: dict[str, Any]) -> int:
    """Runs the child behind walls and returns how it ended; says on `report` why it could not."""
    prctl(DIE_WITH_PARENT, signal.SIGKILL)
    prctl(SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # the watcher waits for it
    try:
        child = _start(order)
    except OSError as error:
        os.write(order["report"], str(error).encode())
        return NO_WALLS
    for each in (order["report"], order["secret"]):
        os.close(each)
    code = watch(child, Bounds(**order["bounds"]))
    end_descendants()
    return code


def _start(order: dict[str, Any]) -> int:
    """Returns the child, which runs the code; raises OSError if it has no walls."""
    if order["user"] is not None:
        os.chown(order["work"], order["user"], order["user"])
    leader = _leader()
    if order["level"] != "limits":
        _separate(order["user"])
    reading, writing = os.pipe()  # closed by a successful exec, so that the code cannot write to it
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(ready, 1)
            _enter(order)
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(NO_WALLS)
    os.setpgid(child, leader)
    os.waitpid(leader, 0)
    os.write(go, b".")
    os.close(writing)
    problem = os.read(reading, 1000)
    if problem:
        raise OSError(problem.decode("utf-8", "replace"))
    return child


def _leader() -> int:
    """Returns a process that has ended, of whose group the child becomes a member.

    The child's signals to its group then reach nobody else, and it may still leave for a session
    of its own, which a leader may not.
    """
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        os._exit(0)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    return process


def _separate(user: int | None) -> None:
    """Leaves for namespaces of its own; a process that stays behind says who is who there."""
    waiting, go = os.pipe()
    process = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        code = 1
        try:
            if os.read(waiting, 1):
                _name_users(Path("/proc", str(process)), user)
                code = 0
        finally:
            os._exit(code)
    try:
        call("unshare", NEW_USER | NEW_PIDS | NEW_NETWORK | NEW_IPC | NEW_NAMES)
        os.write(go, b".")
    finally:
        os.close(go)
        _, status = os.waitpid(helper, 0)
    if status != 0:
        raise PermissionError("the users of the new namespace could not be named")


def _name_users(process: Path, other: int | None) -> None:
    """Writes which users the new namespace knows.

    Root keeps its place, since only root may see the folders of an interpreter under /root, and
    gets a second user to become, whose processes are counted: those of root never are.
    """
    if other is not None:
        users = groups = f"0 0 1\n{INSIDE} {other} 1\n"
    else:
        users, groups = f"{INSIDE} {os.geteuid()} 1\n", f"{INSIDE} {os.getegid()} 1\n"
        (process / "setgroups").write_text("deny")
    (process / "uid_map").write_text(users)
    (process / "gid_map").write_text(groups)


def _enter(order: dict[str, Any]) -> None:
    """Becomes the child: no files but those shown, no privileges, no environment."""
    level, work, other = order["level"], order["work"], order["user"]
    source = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
    if level != "limits":
        call("unshare", NEW_MOUNTS)  # here, so that the watcher keeps the system's /proc
        mount("none", "/", None, RECURSIVE | PRIVATE)
        work = leave_the_files(order)
    os.chdir(work)
    if other is not None:
        inside = other if level == "limits" else INSIDE
        os.setgroups([])
        os.setresgid(inside, inside, inside)
        os.setresuid(inside, inside, inside)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    prctl(NO_NEW_PRIVILEGES, 1)
    prctl(DIE_WITH_PARENT, signal.SIGKILL)
    pipes = (order["report"], order["secret"])
    command = [order["python"], "-I", "-B", "-c", source, *map(str, pipes)]
    if level == "limits":
        write_only_in(".")
    if not filter_calls(outside=level == "limits") and level == "limits":
        raise PermissionError(f"no filter of calls is known for {os.uname().machine}")
    os.execve(command[0], command, {})


def leave_the_files(order: dict[str, Any]) -> str:
    """Makes a new root, read-only but for a /tmp of its own, and drops the old one.

    It has the shown paths alone, or at level `namespaces` all but the hidden ones. Returns the
    empty folder to work in: /tmp, or one in it if the interpreter lies there too.
    """
    root, hidden = order["work"], NO_SUID | NO_DEVICES
    own = Path(root, "tmp")
    if order["level"] == "container":
        mount("tmpfs", root, "tmpfs", hidden, "mode=755,size=1m")
        Path(root, "proc").mkdir()
        own.mkdir()
    else:
        mount("/", root, None, BIND | RECURSIVE)
        _seal(root)  # before some are hidden, which could not be found then
        for path in order["hidden"]:
            if Path(root + path).is_dir():
                mount("tmpfs", root + path, "tmpfs", hidden, "mode=755,size=1m")
    # Before what is shown, since the interpreter may lie in the old one.
    files = f"mode=1777,size={order['disk']},nr_inodes={FILES}"
    mount("tmpfs", str(own), "tmpfs", hidden, files)
    for path in [*order["shown"], *(f"/dev/{name}" for name in _DEVICES)]:
        _show(root, path)
    for folder in order["interpreter"]:
        _show_interpreter(root, folder)
    _seal(root, but=own)
    work = _empty(own, Path(root).name).relative_to(root)
    # A container that hides parts of its own /proc forbids another one: there is none then.
    try:
        mount("proc", f"{root}/proc", "proc", hidden | NO_EXEC)
    except OSError:
        mount("tmpfs", f"{root}/proc", "tmpfs", hidden | READ_ONLY)
    os.chdir(root)
    call("pivot_root", ".", ".")
    call("umount2", ".", DETACH)
    os.chdir("/")
    mount(None, "/", None, REMOUNT | BIND | READ_ONLY | _flags("/"))
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


def _seal(root: str, but: Path | None = None) -> None:
    """Makes all mounts, or all but one, read-only; flags that they came with must stay."""
    for line in Path("/proc/self/mounts").read_bytes().splitlines():
        written = line.split()[1]
        target = os.fsdecode(re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), written))
        # What another mount covers, or this user may not reach, the code cannot reach either.
        below = target.startswith(f"{root}/") and target != str(but)
        if below and os.path.exists(target):  # noqa: PTH110 - Path raises what this answers
            mount(None, target, None, REMOUNT | BIND | READ_ONLY | NO_SUID | _flags(target))


def _flags(target: str) -> int:
    return os.statvfs(target).f_flag & (NO_SUID | NO_DEVICES | NO_EXEC)


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
