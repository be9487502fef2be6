"""Runs model-written code in a process of its own, behind the walls that the system allows."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from dllm.eval.sandbox.verdict import Level, Limits, SandboxError, Verdict, ending, read_report
from dllm.eval.sandbox.walls import NO_WALLS

# Three packages by name alone: their own modules would load torch, once for each program.
_START = """
import json, sys, types
for name in ("dllm", "dllm.eval", "dllm.eval.sandbox"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1]]
from dllm.eval.sandbox.walls import main
sys.exit(main(json.loads(sys.argv[2])))
"""
_REPORT = 1 << 16  # bytes of a report that are read
_GRACE = 5.0  # seconds that the watcher gets on top of the limit
# Seen in the container where they exist, beside the interpreter's own folders.
_SHOWN = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache")
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

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"level={self.level!r} must be one of {', '.join(get_args(Level))}")

    def run(self, program: str) -> Verdict:
        """Returns how a program ended; it passed if it reached its last line.

        Raises SandboxError if the walls cannot be built.
        """
        start = time.monotonic()
        nonce = secrets.token_hex(16)
        job = {"program": program, "nonce": nonce, "limits": self._resources()}
        with tempfile.TemporaryDirectory(prefix="dllm-", ignore_cleanup_errors=True) as work:
            code, report = self._launch(work, json.dumps(job))
        if code == NO_WALLS:
            raise SandboxError(f"sandbox level {self.level!r} failed: {report!r}")
        kind, detail = read_report(report, nonce) or ending(code)
        return Verdict(kind, detail, self.level, time.monotonic() - start)

    def _launch(self, work: str, job: str) -> tuple[int, str]:
        """Returns the watcher's exit code and what was reported."""
        reading, writing = os.pipe()
        try:
            order = json.dumps(self._order(work, writing))
            folder = str(Path(__file__).resolve().parent)
            command = [self.python, "-I", "-B", "-c", _START, folder, order]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=work,
                env={},
                pass_fds=(writing,),
                start_new_session=True,
                text=True,
            )
        finally:
            os.close(writing)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(job, timeout=self.limits.seconds + _GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.set_blocking(reading, False)
            with contextlib.suppress(BlockingIOError), os.fdopen(reading, "rb", 0) as pipe:
                report = (pipe.read(_REPORT) or b"").decode("utf-8", "replace")
        return process.returncode, report

    def _order(self, work: str, report: int) -> dict[str, Any]:
        own = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
        own += [os.path.realpath(path) for path in own]
        return {
            "level": self.level,
            "work": work,
            "report": report,
            "python": self.python,
            "shown": _SHOWN,
            "interpreter": list(dict.fromkeys(own)),
            "seconds": self.limits.seconds,
            "cpu_seconds": self.limits.cpu_seconds,
            "disk": self.limits.disk,
        }

    def _resources(self) -> dict[str, int]:
        limits = self.limits
        return {
            "RLIMIT_CPU": limits.cpu_seconds,
            "RLIMIT_AS": limits.memory,
            "RLIMIT_FSIZE": limits.file_size,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_CORE": 0,
            # Without a namespace all processes of the user count, so that only "none" is sure.
            "RLIMIT_NPROC": 1 if self.level == "limits" else limits.processes,
        }


def open_sandbox(limits: Limits | None = None) -> Sandbox:
    """Returns a sandbox at the highest level at which a harmless program passes here.

    Raises SandboxError where there is none.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"model-written code is only run on Linux, not on {sys.platform}")
    problems = []
    for level in get_args(Level):
        sandbox = Sandbox(level)
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
