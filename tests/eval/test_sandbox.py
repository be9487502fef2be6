"""The sandbox against hostile programs: none passes, none stays, none reaches outside."""

from __future__ import annotations

import getpass
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dllm.eval.sandbox import Sandbox, open_sandbox
from dllm.eval.sandbox import sandbox as module
from dllm.eval.sandbox.sandbox import private_to_root
from dllm.eval.sandbox.verdict import Level, Limits, SandboxError, Verdict
from tests.support.sandboxes import QUICK, sandbox_at

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox is for Linux")


OUTSIDE: tuple[Level, ...] = ("namespaces", "limits")


@pytest.fixture(params=["container", pytest.param("namespaces", marks=pytest.mark.slow), "limits"])
def box(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_at(request.param)


@pytest.fixture
def apart() -> Sandbox:
    return sandbox_at("container")


def test_the_best_level_is_found() -> None:
    try:
        found = open_sandbox(QUICK)
    except SandboxError as error:
        pytest.skip(str(error))
    assert found.limits is QUICK
    verdict = found.run("x = 1")
    assert (verdict.kind, verdict.detail, verdict.level) == ("passed", "", found.level)


def test_lower_levels_are_tried_and_their_failures_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Sandbox, program: str) -> Verdict:
        if self.level == "container":
            raise SandboxError("no walls")
        return Verdict("exception", "nothing works", self.level, 0.0)

    monkeypatch.setattr(Sandbox, "run", fails)
    message = (
        "no walls; at level 'namespaces' a harmless program exception: nothing works; .*limits"
    )
    with pytest.raises(SandboxError, match=message):
        open_sandbox()
    monkeypatch.setattr(Sandbox, "run", lambda self, program: Verdict("passed", "", self.level, 0))
    assert open_sandbox().level == "container"
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="only run on Linux, not on darwin"):
        open_sandbox()


@pytest.mark.few(8)
@pytest.mark.parametrize(
    ("program", "kind", "detail"),
    [
        ("import math, typing, hashlib, re, collections\nassert math.gcd(4, 6) == 2", "passed", ""),
        ("assert 1 == 2, 'no'", "assertion", "AssertionError: no"),
        ("1 / 0", "exception", "ZeroDivisionError: division by zero"),
        ("def f(:", "syntax", "SyntaxError: invalid syntax"),
        ("x = '\0'", "syntax", ""),
        ("return 1", "syntax", "SyntaxError: 'return' outside function"),
        ("exit(0)", "exited", "SystemExit: 0"),
        ("import sys; sys.exit()", "exited", "SystemExit"),
        ("raise KeyboardInterrupt", "exception", "KeyboardInterrupt"),
        ("def f(): return f()\nf()", "exception", "RecursionError"),
        ("if __name__ == '__main__': 1 / 0", "passed", ""),
        ("class E(Exception):\n    def __str__(self): raise E\nraise E", "exception", "no text"),
        ("input()", "exception", "EOFError"),
        ("import sys; assert sys.stdin.read() == ''", "passed", ""),
        (f"raise ValueError('x' * {10**6})", "exception", "ValueError: xxx"),
    ],
)
def test_how_programs_end(apart: Sandbox, program: str, kind: str, detail: str) -> None:
    verdict = apart.run(program)
    assert (verdict.kind, verdict.level) == (kind, "container")
    assert detail in verdict.detail
    assert len(verdict.detail) <= 500
    assert verdict.passed is (kind == "passed")


HOSTILE = {
    "leaves with 0": "import os\nos._exit(0)",
    "leaves through atexit": "import atexit, os, sys\natexit.register(os._exit, 0)\nsys.exit(0)",
    "guesses the nonce": (
        "import json, os\n"
        "for fd in range(3, 64):\n"
        "    try: os.write(fd, json.dumps({'nonce': '0' * 32, 'kind': 'passed', 'detail': ''})"
        ".encode())\n"
        "    except OSError: pass\n"
        "os._exit(0)"
    ),
    "prints what looks right": "print('passed', flush=True)\nimport os\nos._exit(0)",
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\nos._exit(0)",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "kills its parent": (
        "import os, signal\ntry: os.kill(os.getppid() or 1, signal.SIGKILL)\nfinally: os._exit(0)"
    ),
    "kills its group": "import os, signal\nos.killpg(0, signal.SIGKILL)\nos._exit(0)",
    "spends memory": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "floods the output": "import os\nwhile True: print('x' * 1000)",
    "floods the report": (
        "import os\n"
        "fds = []\n"
        "for fd in range(3, 64):\n"
        "    try: os.fstat(fd); fds.append(fd)\n"
        "    except OSError: pass\n"
        "while True:\n"
        "    for fd in fds:\n"
        "        try: os.write(fd, b'x' * 1000)\n"
        "        except OSError: pass"
    ),
    "loops": "while True: pass",
    "catches everything": (
        "import signal\n"
        "for n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True:\n"
        "    try:\n"
        "        while True: pass\n"
        "    except BaseException: pass"
    ),
    "sleeps in another session": "import os, time\nos.setsid()\ntime.sleep(60)",
}
SLEEPS = {"sleeps in another session", "floods the report"}


SLOW = {"floods the output", "catches everything"}  # as long as their limit, and much like others


@pytest.mark.few(8)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in HOSTILE]
)
def test_no_hostile_program_passes(name: str) -> None:
    limits = Limits(cpu_seconds=1, seconds=1.5 if name in SLEEPS else 5.0, memory=1 << 28)
    box = Sandbox("container", limits, sandbox_at("container").python)
    start = time.monotonic()
    verdict = box.run(HOSTILE[name])
    assert not verdict.passed
    assert time.monotonic() - start < limits.seconds + 20  # of the 60 that some sleep
    expected = {"loops": "timeout", "catches everything": "timeout", "spends memory": "memory"}
    expected["sleeps in another session"] = "timeout"
    assert verdict.kind == expected.get(name, verdict.kind)


@pytest.mark.slow
@pytest.mark.parametrize("level", OUTSIDE)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_program_passes_at_lower_levels(name: str, level: Level) -> None:
    limits = Limits(cpu_seconds=1, seconds=3.0, memory=1 << 28)
    verdict = Sandbox(level, limits, sandbox_at(level).python).run(HOSTILE[name])
    assert not verdict.passed
    assert verdict.level == level


@pytest.mark.few(1)
def test_a_fork_bomb_ends(box: Sandbox) -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    limited = Sandbox(box.level, Limits(cpu_seconds=1, seconds=1.5), box.python)
    start = time.monotonic()
    assert limited.run(bomb).kind in ("timeout", "killed")
    assert time.monotonic() - start < 30
    assert box.run("x = 1").passed  # the system is still well
    count = (
        "import os, time\nnumber = 0\n"
        "try:\n"
        "    while number < 200:\n"
        "        if os.fork() == 0: time.sleep(60)\n"
        "        number += 1\n"
        "except OSError: pass\n"
        "raise ValueError(number)"
    )
    number = int(box.run(count).detail.removeprefix("ValueError: "))
    assert number < QUICK.processes if box.level != "limits" else number == 0


def programs() -> str:
    """Returns the command lines of all processes of this machine."""
    words = ["ps", "axww", "-o", "args"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_nothing_stays_behind(box: Sandbox) -> None:
    """Processes that left the group die with the namespace; without one none can be started."""
    mark = f"stay{os.getpid()}{time.monotonic_ns()}"
    stay = (
        "import os, sys, time\n"
        "reads, writes = os.pipe()\n"
        "try: child = os.fork()\n"
        "except OSError: sys.exit('no process')\n"
        "if child == 0:\n"
        "    os.setsid()\n"
        f"    words = [sys.executable, '-c', 'import time; time.sleep(60)', '{mark}']\n"
        "    try: os.execv(sys.executable, words)\n"
        "    finally: os.write(writes, b'failed')\n"
        "os.close(writes)\n"
        "said = os.read(reads, 10)\n"  # until the other is another program, which closes the pipe
        "assert said == b'', said"
    )
    verdict = box.run(stay)
    assert "no process" in verdict.detail if box.level == "limits" else verdict.passed, verdict
    end = time.monotonic() + 20  # what is killed may take its time on a busy machine
    while mark in programs() and time.monotonic() < end:
        time.sleep(0.05)
    assert mark not in programs()


def test_the_interpreter_that_asks_is_safe(box: Sandbox) -> None:
    """Kills every process that it can see and is allowed to; this one is not among them."""
    if box.level == "limits" and os.geteuid() != 0:
        pytest.skip("without walls a user's processes can kill each other")
    program = f"import os, signal\nfor p in [{os.getpid()}, {os.getppid()}]:\n    " + (
        "try: os.kill(p, signal.SIGKILL)\n    except OSError: continue\n    raise ValueError(p)"
    )
    assert box.run(program).passed


def test_no_environment_and_no_arguments(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    program = (
        "import os, sys\n"
        "assert set(os.environ) <= {'LC_CTYPE'}, os.environ\n"
        "assert not [p for p in sys.path if p.startswith(('.', '/work')) and 'venv' not in p]\n"
        "assert os.getuid() != 0 and os.getgid() != 0 and not os.getgroups()[1:]\n"
    )
    assert box.run(program).detail == ""


def test_files_outside_cannot_be_seen_or_written(apart: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("kept")
    tmp_path.chmod(0o777)
    secret.chmod(0o666)
    program = f"""
import os
assert not os.path.exists({str(tmp_path)!r})
for path in ({str(secret)!r}, "/written", "/usr/written", "/proc/sys/kernel/hostname",
             {str(Path(module.__file__).resolve())!r}, "/etc/passwd"):
    try:
        open(path, "a").close()
    except OSError:
        continue
    raise ValueError(path)
assert os.listdir() == [] and (os.getcwd() == "/tmp" or os.path.dirname(os.getcwd()) == "/tmp")
assert sorted(os.listdir("/..")) == sorted(os.listdir("/"))  # the old root is gone
for line in open("/proc/self/mounts"):
    _, target, _, options, *_ = line.split()
    assert target in ("/tmp", "/proc") or "ro" in options.split(","), line
with open("own", "w") as file:
    file.write("x" * 1000)
"""
    verdict = apart.run(program)
    assert verdict.passed, verdict
    assert secret.read_text() == "kept"
    assert not apart.run("assert open('own').read()").passed  # each program has its own


@pytest.fixture
def elsewhere(apart: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A virtual environment under /tmp, of which the sandbox has an empty one; not made yet."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "secret").write_text("kept")
        for name in ("prefix", "exec_prefix"):
            monkeypatch.setattr(sys, name, folder)
        yield Path(folder)


def environment(folder: Path, apart: Sandbox) -> Sandbox:
    subprocess.run([apart.python, "-m", "venv", "--without-pip", str(folder)], check=True)
    return Sandbox("container", QUICK, str(folder / "bin" / "python"))


def test_an_interpreter_under_the_temporary_folder(apart: Sandbox, elsewhere: Path) -> None:
    inside = environment(elsewhere, apart)
    program = f"""
import os, sys
assert sys.prefix == {str(elsewhere)!r} and open("/tmp/free", "w").close() is None
assert os.listdir("/tmp") != [] and os.listdir() == [] and os.getcwd().startswith("/tmp/dllm-")
for path in ({str(elsewhere / "secret")!r}, {str(elsewhere / "written")!r}, "/written"):
    try:
        open(path, "a").close()
    except OSError:
        continue
    raise ValueError(path)
for line in open("/proc/self/mounts"):
    _, target, _, options, *_ = line.split()
    assert target in ("/tmp", "/proc") or "ro" in options.split(","), line
for name in os.listdir("/tmp"):
    assert "/tmp/" + name in ({str(elsewhere)!r}, os.getcwd(), "/tmp/free"), name
with open("own", "w") as file:
    file.write("x" * 1000)
"""
    verdict = inside.run(program)
    assert verdict.passed, verdict
    big = "for n in range(16):\n    with open(str(n), 'wb') as f:\n        f.write(bytes(1 << 19))"
    small = replace(inside, limits=Limits(cpu_seconds=2, file_size=1 << 20, disk=4 << 20))
    assert "No space left" in small.run(big).detail
    assert (elsewhere / "secret").read_text() == "kept"
    assert not (elsewhere / "written").exists()


def test_an_interpreter_in_a_folder_of_root_alone(apart: Sandbox, elsewhere: Path) -> None:
    """Its own parts are shown, the folder's other files are not."""
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    inside = environment(elsewhere, apart)
    elsewhere.chmod(0o700)
    program = f"""
import os
assert not set(os.listdir({str(elsewhere)!r})) - {{"bin", "lib", "lib64", "pyvenv.cfg"}}
try:
    open({str(elsewhere / "lib" / "written")!r}, "w")
except OSError:
    pass
else:
    raise ValueError
"""
    verdict = inside.run(program)
    assert verdict.passed, verdict
    assert str(elsewhere) in private_to_root(inside.python)


def test_a_private_interpreter_is_named(
    elsewhere: Path, apart: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = environment(elsewhere, apart).python
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "executable", python)
    (elsewhere / "bin").chmod(0o700)
    known = f"root becomes another user to run the code, who may not read {elsewhere / 'bin'}: "
    assert private_to_root(python).startswith(known)
    monkeypatch.setattr(Sandbox, "run", lambda self, _: Verdict("exited", "", self.level, 0))
    with pytest.raises(SandboxError, match=f"{re.escape(known)}install Python"):
        open_sandbox()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert private_to_root(python) == ""


def test_files_are_bounded(box: Sandbox) -> None:
    limits = Limits(cpu_seconds=2, file_size=1 << 20, disk=4 << 20)
    limited = Sandbox(box.level, limits, box.python)
    big = "with open('big', 'wb') as f:\n    f.write(bytes(2 << 20))"
    assert "OSError" in limited.run(big).detail
    assert limited.run(big.replace("2 << 20", "1 << 19")).passed
    many = "for n in range(16):\n    with open(str(n), 'wb') as f:\n        f.write(bytes(1 << 19))"
    if box.level == "container":
        assert "No space left" in limited.run(many).detail


def test_no_network(apart: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert "OSError" in apart.run(reach).detail or "Error" in apart.run(reach).detail
        socket.create_connection(("127.0.0.1", port), 1).close()  # it can be reached from here
        if sandbox_at("namespaces"):
            assert sandbox_at("namespaces").run(reach).kind == "exception"


def test_no_privileges(apart: Sandbox) -> None:
    program = """
import ctypes, os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
    assert int(status[name], 16) == 0, (name, status[name])
assert status["NoNewPrivs"].strip() == "1"
libc = ctypes.CDLL(None)
assert libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) != 0
assert libc.sethostname(b"x", 1) != 0
for change in (os.setuid, os.setgid):
    try: change(0)
    except OSError: continue
    raise ValueError(change)
"""
    verdict = apart.run(program)
    assert verdict.passed, verdict


def test_broken_walls_are_an_error(apart: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Sandbox._order

    def elsewhere(self: Sandbox, work: str, report: int) -> dict[str, Any]:
        return {**order(self, work, report), "python": "/nowhere/python"}

    monkeypatch.setattr(Sandbox, "_order", elsewhere)
    with pytest.raises(SandboxError, match=r"sandbox level 'container' failed: .*No such file"):
        apart.run("x = 1")
    with pytest.raises(ValueError, match="level='walls' must be one of container, namespaces"):
        Sandbox("walls")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cpu_seconds=0 must be at least 1"):
        Limits(cpu_seconds=0)


def test_nothing_is_left_open_or_in_the_temporary_folder(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 1 and parent.owner() == getpass.getuser():
            parent.chmod(parent.stat().st_mode | 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for program in ("x = 1", "open('file', 'w')", "import os; os._exit(3)"):
        box.run(program)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not list(tmp_path.iterdir())
