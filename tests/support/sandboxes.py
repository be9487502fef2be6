"""Sandboxes of this system for tests, and what a program might have left or changed outside."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from dllm.eval.sandbox import Level, Limits, Sandbox, SandboxError

QUICK = Limits(cpu_seconds=1, seconds=5.0)
LEVELS: tuple[Level, ...] = ("container", "namespaces", "limits")
SHARED = ("/tmp", "/var/tmp", "/dev/shm")


@cache
def sandbox_at(level: Level) -> Sandbox:
    """A sandbox of a level with an interpreter that other users may run; skips without one."""
    for python in (None, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        found = Sandbox(level, QUICK) if python is None else Sandbox(level, QUICK, python)
        try:
            if found.run("import math").passed:
                return found
        except SandboxError:
            continue
    pytest.skip(f"this system has no level {level!r}")


def has_landlock() -> bool:
    """Returns whether the kernel can refuse writes by folder."""
    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)) >= 1


def processes_of(user: int) -> list[str]:
    """Returns the numbers of the processes that a user has, dead ones included."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # ended meanwhile
            continue
        if any(line.split()[1] == str(user) for line in lines if line.startswith("Uid:")):
            found.append(status.parent.name)
    return found


def files_of(user: int) -> list[str]:
    """Returns what a user has where every user may write, and in memory of System V."""
    found = []
    for folder in filter(os.path.isdir, SHARED):
        for path in Path(folder).iterdir():
            with suppress(FileNotFoundError):  # of somebody else, gone meanwhile
                found += [str(path)] if path.lstat().st_uid == user else []
    for kind in ("shm", "sem", "msg"):
        table = Path("/proc/sysvipc", kind)
        lines = table.read_text(encoding="ascii").splitlines() if table.exists() else []
        found += [line for line in lines if str(user) in line.split()]
    return found


@dataclass
class World:
    """What a program must not reach: a file, a folder, sockets, and this process."""

    folder: Path
    servers: dict[str, socket.socket]

    @classmethod
    def made(cls, stack: ExitStack) -> World:
        """Returns a world that ends with the stack."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        folder.chmod(0o777)
        kinds: dict[str, tuple[int, int, str | tuple[str, int]]] = {
            "@PORT@": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "@SOCKET@": (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "stream")),
            "@DATAGRAM@": (socket.AF_UNIX, socket.SOCK_DGRAM, str(folder / "datagram")),
            "@ABSTRACT@": (socket.AF_UNIX, socket.SOCK_STREAM, f"\0dllm-{os.getpid()}"),
        }
        servers = {}
        for name, (family, kind, address) in kinds.items():
            server = servers[name] = stack.enter_context(socket.socket(family, kind))
            server.bind(address)
            server.setblocking(False)
            if kind == socket.SOCK_STREAM:
                server.listen()
            if isinstance(address, str) and address.startswith("/"):
                Path(address).chmod(0o777)
        world = cls(folder, servers)
        world.victim.write_text("kept")
        world.victim.chmod(0o666)
        return world

    @property
    def victim(self) -> Path:
        """A file that every user may write."""
        return self.folder / "victim"

    def aimed(self, program: str) -> str:
        """Returns a program with the targets of its attack."""
        targets = {name: str(server.getsockname()) for name, server in self.servers.items()}
        targets["@PORT@"] = str(self.servers["@PORT@"].getsockname()[1])
        targets["@ABSTRACT@"] = f"dllm-{os.getpid()}"
        targets |= {"@PID@": str(os.getpid()), "@PARENT@": str(os.getppid())}
        targets |= {"@VICTIM@": str(self.victim), "@OPEN@": str(self.folder)}
        for name, target in targets.items():
            program = program.replace(name, target)
        return program

    def check(self) -> None:
        """Raises AssertionError if a program has changed something, or spoken to somebody."""
        names = {path.name for path in self.folder.iterdir()}
        assert names == {"victim", "stream", "datagram"}
        assert self.victim.read_text() == "kept"
        for name, server in self.servers.items():
            with pytest.raises(BlockingIOError):
                server.recv(1) if name == "@DATAGRAM@" else server.accept()
