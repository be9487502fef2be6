"""Runs model-written code in a process of its own, behind the walls that the system allows."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from dllm.eval.sandbox.child import TOKEN
from dllm.eval.sandbox.verdict import (
    REPORT,
    Level,
    Limits,
    SandboxError,
    Verdict,
    ending,
    read_report,
)
from dllm.eval.sandbox.watch import NO_WALLS, remove, sweep

_LOG = logging.getLogger(__name__)

# Three packages by name alone: their own modules would load torch, once for each program.
_START = """
import json, sys, types
for name in ("dllm", "dllm.eval", "dllm.eval.sandbox"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1]]
from dllm.eval.sandbox.walls import main
sys.exit(main(json.loads(sys.argv[2])))
"""
_GRACE = 5.0  # seconds that the watcher gets on top of the limit
# Seen in the container where they exist, beside the interpreter's own folders.
_SHOWN = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache")
# Empty at level `namespaces`, beside the user's home: what is private, and where sockets lie.
_HIDDEN = ("/home", "/root", "/tmp", "/var/tmp", "/run", "/dev")
OWN_USER = "DLLM_SANDBOX_OWN_USER"  # environment variable that allows what `own_user` does
_NOBODY = 65534  # whom root becomes where a namespace knows no user below
_STRANGERS = range(0x70000000, 0x7FFFFFFF)  # nobody's by the conventions of distributions
_KNOWN_GOOD = """
import collections, hashlib, json, math, os, random, re, typing
with open("file", "w") as file:
    file.write("text")
assert open("file").read() == "text" and math.gcd(4, 6) == 2
"""


@dataclass(frozen=True)
class Sandbox:
    """Runs programs at a level of isolation; `open_sandbox` finds the best one."""

    level: Level
    limits: Limits = field(default_factory=Limits)
    python: str = sys.executable
    own_user: bool = False  # whether level `limits` may run code as this very user, if not root

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"level={self.level!r} must be one of {', '.join(get_args(Level))}")

    def run(self, program: str) -> Verdict:
        """Returns how a program ended; it passed if it reached its last line.

        Raises SandboxError if the walls cannot be built.
        """
        start = time.monotonic()
        self._check_user()
        user = _stranger() if os.geteuid() == 0 else None
        job = json.dumps({"program": program, "limits": self._resources()}).encode()
        token = secrets.token_hex(TOKEN // 2).encode()
        work = tempfile.mkdtemp(prefix="dllm-")
        try:
            code, report = self._launch(self._order(work, user), job, token)
        finally:
            _clear(work, user if self.level == "limits" else None)
        if code == NO_WALLS:
            problem = report.decode("utf-8", "replace")
            raise SandboxError(f"sandbox level {self.level!r} failed: {problem!r}")
        kind, detail = ending(code, self.limits) or read_report(report, token)
        return Verdict(kind, detail, self.level, time.monotonic() - start)

    def _check_user(self) -> None:
        allowed = self.own_user or os.environ.get(OWN_USER) == "1"
        if self.level == "limits" and os.geteuid() != 0 and not allowed:
            raise SandboxError(
                f"sandbox level 'limits' would run the code as this user ({os.geteuid()}), whose "
                "files it could read and change: start as root, who becomes another user (in a "
                f"container, say), or allow it with own_user=True or the environment's {OWN_USER}=1"
            )

    def _launch(self, order: dict[str, Any], job: bytes, token: bytes) -> tuple[int, bytes]:
        """Returns the watcher's exit code and what was reported."""
        reading, writing = os.pipe()
        secret, telling = os.pipe()
        stdin = _sealed(job)
        try:
            os.write(telling, token)
            order = {**order, "report": writing, "secret": secret}
            folder = str(Path(__file__).resolve().parent)
            process = subprocess.Popen(
                [self.python, "-I", "-S", "-B", "-c", _START, folder, json.dumps(order)],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=order["work"],
                env={},
                pass_fds=(writing, secret),
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            for each in (writing, secret, telling, stdin):
                os.close(each)
        try:
            _wait(process, self.limits.seconds + _GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.set_blocking(reading, False)
            with os.fdopen(reading, "rb", 0) as pipe:
                report = pipe.read(REPORT + 1) or b""
        return process.returncode, report

    def _order(self, work: str, user: int | None) -> dict[str, Any]:
        own = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
        own += [os.path.realpath(path) for path in own]
        hidden = {os.path.realpath(path) for path in (*_HIDDEN, Path.home())}
        alone = self.level == "limits"
        return {
            "level": self.level,
            "work": work,
            "user": user,
            "python": self.python,
            "shown": _SHOWN,
            "hidden": sorted(hidden - {"/"}),
            "interpreter": list(dict.fromkeys(own)),
            "disk": self.limits.disk,
            "bounds": {
                "seconds": self.limits.seconds,
                "cpu_seconds": self.limits.cpu_seconds,
                "memory": None if alone else self.limits.memory,
                "disk": self.limits.disk,
                "folder": work if alone else None,
            },
        }

    def _resources(self) -> dict[str, int]:
        limits = self.limits
        return {
            "RLIMIT_CPU": limits.cpu_seconds,
            "RLIMIT_AS": limits.memory,
            "RLIMIT_FSIZE": limits.file_size,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_CORE": 0,
            # Without a namespace the user's other processes count too, so that only "none" is sure.
            "RLIMIT_NPROC": 1 if self.level == "limits" else limits.processes,
        }


def open_sandbox(limits: Limits | None = None, own_user: bool = False) -> Sandbox:
    """Returns a sandbox at the highest level at which a harmless program passes here.

    `own_user`: level `limits` counts even where it runs code as this very user. Raises SandboxError
    where there is none.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"model-written code is only run on Linux, not on {sys.platform}")
    problems = []
    for level in get_args(Level):
        sandbox = Sandbox(level, own_user=own_user)
        try:
            verdict = sandbox.run(_KNOWN_GOOD)
        except SandboxError as error:
            problems.append(str(error))
            continue
        if verdict.passed:
            return replace(sandbox, limits=limits or Limits())
        problems.append(f"at level {level!r} a harmless program {verdict.kind}: {verdict.detail}")
    reasons = "; ".join(filter(None, [*problems, private_to_root(sys.executable)]))
    raise SandboxError(f"no sandbox works here, so that model-written code is not run: {reasons}")


def _sealed(job: bytes) -> int:
    """Returns a descriptor that gives the job, in memory that nobody may change."""
    file = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(file), "wb") as whole:
        whole.write(job)
    os.lseek(file, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Waits for a process to end; unlike its own `wait`, does not sleep in between."""
    try:
        watched = os.pidfd_open(process.pid)
    except OSError:  # before Linux 5.3
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return
    try:
        waiting = select.poll()
        waiting.register(watched, select.POLLIN)
        waiting.poll(1000 * seconds)
    finally:
        os.close(watched)


def _stranger() -> int:
    """Returns a user whom nobody else is, for root to become; else the system's nobody."""
    user = secrets.choice(_STRANGERS)
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        first, _, number = map(int, line.split())
        if first <= user < first + number:
            return user
    return _NOBODY


def _clear(work: str, user: int | None) -> None:
    """Deletes a program's folder and what a user of its own left elsewhere."""
    try:
        with contextlib.suppress(FileNotFoundError):  # moved away, where the sweep may find it
            remove(work)
        if user not in (None, _NOBODY):
            sweep(user)
    except OSError as error:
        _LOG.warning("a program in the sandbox left files behind: %s", error)


def private_to_root(python: str) -> str:
    """Returns what keeps the user that root becomes from an interpreter, with the way out.

    An empty text if nothing does, or if this user is not root and so becomes nobody else.
    """
    if os.geteuid() != 0:
        return ""
    paths = [python, os.path.realpath(python)]
    if python == sys.executable:
        paths.append(os.__file__)  # its standard library
    for path in map(Path, paths):
        for part in (*reversed(path.parents), path):
            needed = stat.S_IXOTH if part.is_dir() else stat.S_IROTH
            if part.exists() and not part.stat().st_mode & needed:
                return (
                    f"root becomes another user to run the code, who may not read {part}: install "
                    "Python and the environment where every user may read them, or start as "
                    "another user than root"
                )
    return ""
