"""The sandbox's parts: reports, bounds, removal of folders, the refused calls, who may run what."""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from dllm.eval.sandbox import Limits, Sandbox, SandboxError, open_sandbox
from dllm.eval.sandbox import sandbox as module
from dllm.eval.sandbox.refusals import _MACHINES
from dllm.eval.sandbox.verdict import CLAIMS, REPORT, Kind, ending, read_report
from dllm.eval.sandbox.watch import FILES, _fits, descendants, remove
from tests.support.sandboxes import processes_of, sandbox_at

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox is for Linux")

TOKEN = b"a" * 64


@pytest.mark.parametrize(
    ("report", "kind", "detail"),
    [
        (TOKEN, "passed", ""),
        (TOKEN + b"\n", "exited", "a broken report"),
        (TOKEN + TOKEN, "exited", "a broken report"),
        (b"x" + TOKEN, "exited", "a broken report"),
        (b"passed", "exited", "a broken report"),
        (b"passed\n" + TOKEN, "exited", "a broken report"),
        (b"timeout\n", "exited", "a broken report"),
        (b"", "exited", "the process ended before the check was over"),
        (b"[" * (REPORT + 1), "exited", "a broken report"),
        (b"assertion\n" + b"x" * REPORT, "exited", "a broken report"),
        (b"assertion\nAssertionError: 1", "assertion", "AssertionError: 1"),
        (b"memory", "memory", ""),
        (b"exception\n\xff\xfe", "exception", "\ufffd\ufffd"),
        (b"exception\na\nb\t\x1b[2J\x00", "exception", "a\nb\t\\x1b[2J\\x00"),
    ],
)
def test_reports(report: bytes, kind: str, detail: str) -> None:
    assert read_report(report, TOKEN) == (kind, detail)


def test_any_bytes_are_a_verdict() -> None:
    generator = random.Random(0)
    for _ in range(2000):
        report = generator.choice([b"", *(name.encode() + b"\n" for name in CLAIMS)])
        report += generator.randbytes(generator.randrange(200))
        kind, detail = read_report(report, TOKEN)
        assert kind in get_args(Kind)
        assert kind != "passed"
        assert len(detail) <= 500
        detail.encode()  # no lone surrogates, which could not be written to a file


def test_codes_of_the_watcher() -> None:
    limits = Limits(memory=7, disk=8)
    assert ending(0, limits) is None
    assert ending(124, limits) == ("timeout", "")
    assert ending(123, limits) == ("memory", "its processes took more than 7 bytes together")
    message = f"its files took more than 8 bytes, or are more than {FILES}"
    assert ending(122, limits) == ("killed", message)
    assert ending(137, limits) == ending(-9, limits) == ("killed", "signal 9")
    assert ending(1, limits) == ("killed", "watcher's code 1")


def nest(top: Path, depth: int) -> None:
    """Makes folders in each other, each with a file and a link that leads outside."""
    place = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 100, dir_fd=place)
        os.symlink("/etc", "link", dir_fd=place)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0, dir_fd=place))
        inner = os.open("d" * 100, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)


def test_a_deep_folder_is_removed(tmp_path: Path) -> None:
    kept, top = tmp_path / "kept", tmp_path / "top"
    kept.mkdir()
    top.mkdir()
    (kept / "file").write_text("kept")
    (top / "out").symlink_to(kept)
    (top / "broken").symlink_to("nowhere")
    nest(top, 3000)
    assert _fits(str(top), 1 << 30)
    assert not _fits(str(top), 0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    remove(str(top))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").read_text() == "kept"


def test_closed_and_wide_folders_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for number in range(300):
        (top / str(number) / "a" / "b").mkdir(parents=True)
        (top / str(number) / "a" / "b").chmod(0)
        (top / str(number) / "a").chmod(0)
    top.chmod(0)
    remove(str(top))
    assert not top.exists()


def test_a_link_is_no_folder_to_remove(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(NotADirectoryError):
        remove(str(tmp_path / "link"))
    assert (tmp_path / "kept").is_dir()


def test_many_files_do_not_fit(tmp_path: Path) -> None:
    for number in range(600):
        (tmp_path / str(number)).mkdir()
    assert not _fits(str(tmp_path), 1 << 30)  # more folders than are held open
    for number in range(300):
        (tmp_path / str(number)).rmdir()
    assert _fits(str(tmp_path), 1 << 30)


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")],
)
def test_numbers_of_calls_are_the_kernel_s(machine: str, header: str) -> None:
    found = [*Path("/usr/include").glob(header), *Path("/usr/include").glob(f"*/{header}")]
    if not found:
        pytest.skip(f"no {header} here")
    text = found[0].read_text(encoding="utf-8")
    numbers = {
        name: int(number)
        for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)
    }
    known = {name: numbers[name] for name in _MACHINES[machine].calls if name in numbers}
    assert len(known) > 40
    assert known == {name: _MACHINES[machine].calls[name] for name in known}


def test_limits_are_refused_to_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv(module.OWN_USER, raising=False)
    launched: list[object] = []

    def launch(self: Sandbox, *order: object) -> tuple[int, bytes]:
        launched.append(order)
        return 0, b""

    monkeypatch.setattr(Sandbox, "_launch", launch)
    message = r"'limits' would run the code as this user \(1000\), .* DLLM_SANDBOX_OWN_USER=1"
    with pytest.raises(SandboxError, match=message):
        Sandbox("limits").run("x = 1")
    with pytest.raises(SandboxError, match=message):
        open_sandbox()
    assert not [order for order in launched if order[0]["level"] == "limits"]  # type: ignore[index]
    assert Sandbox("limits", own_user=True).run("x = 1").kind == "exited"
    monkeypatch.setenv(module.OWN_USER, "1")
    assert Sandbox("limits").run("x = 1").kind == "exited"


def test_home_is_hidden_and_all_is_read_only_at_namespaces() -> None:
    box = sandbox_at("namespaces")
    prefixes = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    parts = {str(part) for prefix in prefixes for part in (prefix, *prefix.parents)}
    program = f"""
import os
mounts = {{}}  # the uppermost of those at one place
for line in open("/proc/self/mounts"):
    _, target, _, options, *_ = line.split()
    mounts[target] = options.split(",")
for target, options in mounts.items():
    assert target in ("/tmp", "/proc") or "ro" in options or not os.path.exists(target), target
for folder in {{"/home", "/root", "/run", "/var/tmp", {str(Path.home())!r}}} - {{"/"}}:
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        assert os.path.join(folder, name) in {parts}, name
assert sorted(os.listdir("/dev")) == ["null", "random", "urandom", "zero"]
assert os.listdir() == [] and open("/etc/passwd").read()
assert [p for p in os.listdir("/proc") if p.isdigit()] == [str(os.getpid())]
"""
    verdict = box.run(program)
    assert verdict.passed, verdict


def test_memory_is_bounded_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight processes of 60 MB each, in limits of 256 MB for one and for all."""
    program = (
        "import os, time\nreads, writes = os.pipe()\nfor _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        x = bytearray(b'x' * (60 << 20))\n        os.write(writes, b'x')\n"
        "        time.sleep(60)\n"
        "for _ in range(8): os.read(reads, 1)\n"  # until all have what they want
    )
    python = sandbox_at("container").python
    limits = Limits(memory=1 << 28, seconds=30.0)
    verdict = Sandbox("container", limits, python).run(program + "time.sleep(60)")
    assert verdict.kind == "memory"
    assert "more than 268435456 bytes together" in verdict.detail
    more = replace(limits, memory=1 << 30)
    assert Sandbox("container", more, python).run(program).passed


def test_descendants_are_found() -> None:
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    assert child in descendants(os.getpid())
    assert descendants(child) == [child]
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert child not in descendants(os.getpid())


def test_a_user_that_nobody_is() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    users = {module._stranger() for _ in range(20)}
    assert all(user >= 0x70000000 or user == 65534 for user in users)
    assert not any(processes_of(user) for user in users if user != 65534)


def test_disk_is_bounded_at_limits() -> None:
    box = sandbox_at("limits")
    limits = Limits(cpu_seconds=3, file_size=1 << 20, disk=4 << 20)
    program = (
        "import time\nfor n in range(16):\n    open(str(n), 'wb').write(bytes(1 << 20))\n"
        "time.sleep(60)"
    )
    verdict = Sandbox("limits", limits, box.python).run(program)
    assert verdict.kind == "killed"
    assert "its files took more than 4194304 bytes" in verdict.detail
    assert shutil.which("true")  # the system is still well
