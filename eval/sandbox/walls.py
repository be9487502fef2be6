"""Puts walls around the process that runs model-written code, watches it and ends it in time.

Needs the standard library alone, in a process of its own that `dllm.eval.sandbox` starts. It stays
outside of the walls; the code runs inside, in a fresh interpreter with `child.py`.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from dllm.eval.sandbox.files import leave_the_files
from dllm.eval.sandbox.kernel import (
    DIE_WITH_PARENT,
    NEW_IPC,
    NEW_MOUNTS,
    NEW_NAMES,
    NEW_NETWORK,
    NEW_PIDS,
    NEW_USER,
    NO_NEW_PRIVILEGES,
    PRIVATE,
    RECURSIVE,
    call,
    mount,
    prctl,
)

TIMED_OUT, NO_WALLS, SIGNALLED = 124, 125, 128  # exit codes; the last one plus the signal
NOBODY = 65534  # whom root becomes
INSIDE = 1000  # the user and group inside of the walls, who is not root there
PAUSE = 0.005  # seconds between looks at the process


def main(order: dict[str, Any]) -> int:
    """Runs the child behind walls and returns how it ended; says on `report` why it could not."""
    prctl(DIE_WITH_PARENT, signal.SIGKILL)
    told, tell = os.pipe()  # closed by a successful exec, so that the code cannot write to it
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
            os.write(tell, str(error).encode())
        finally:
            os._exit(NO_WALLS)
    os.close(tell)
    problem = os.read(told, 1000)
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
