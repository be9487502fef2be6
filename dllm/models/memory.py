"""Memory of a device: what can still be had, what weights need, and the error where it is short."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_TOLD = (
    *("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory"),
    "_STATUS_ALLOC_FAILED",
)
GUARDED = (torch.OutOfMemoryError, MemoryError, RuntimeError)

CROWDED = 0.9  # of the free memory: what is left is too little to decode with

MEMINFO = Path("/proc/meminfo")
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
OWN_LIMITS = Path("/proc/self/limits")
OWN_STATUS = Path("/proc/self/status")
# File of the limit and of what is used, and the line of memory.stat that the system takes back.
_VERSIONS = (
    ("memory.max", "memory.current", "inactive_file"),  # v2
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # v1
)


class NotEnoughMemoryError(RuntimeError):
    """The weights, the K/V store or a pass did not fit.

    `partial` is the GenerationOutput of what was committed before, None where none had begun.
    """

    partial: Any = None


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text.lower() in str(error).lower() for text in _TOLD)


def available(device: torch.device) -> int | None:
    """Returns the bytes that can still be had on a device; None where nobody says.

    Of a CPU: what the system can give, and no more than the limits of the process (`ulimit -v`) and
    of the groups that it is in (containers, Slurm) leave.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    if device.type != "cpu":
        return None
    free_bytes = _of_meminfo("MemAvailable")
    left = [limit - used for limit, used in (*_limits(), *_address_space())]
    known = [value for value in (free_bytes, *left) if value is not None]
    return max(min(known), 0) if known else None


def give_back() -> None:
    """Gives memory that was freed back to the system, which glibc else keeps in pieces."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def readable(num_bytes: int) -> str:
    """Returns a number of bytes in the largest binary unit of which it has one."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


@dataclass(frozen=True)
class Need:
    """The memory that weights take on one device."""

    weights: int  # bytes that stay
    reading: int  # bytes beside them while they are read, and no longer

    @property
    def peak(self) -> int:
        """Most bytes at a time."""
        return self.weights + self.reading


def check_room(name: str, dtype: str, needs: Mapping[torch.device, Need]) -> list[str]:
    """Returns advice where weights leave little room to decode in.

    Raises NotEnoughMemoryError where they do not fit beside what is in use now.
    """
    advice = []
    for device, need in needs.items():
        free = available(device)
        if free is None or need.peak <= CROWDED * free:
            continue
        text = (
            f"{name!r} in {dtype} takes {readable(need.weights)} on {device} and "
            f"{readable(need.peak)} while it is read, and {readable(free)} can be had there"
        )
        if need.peak > free:
            raise NotEnoughMemoryError(f"{text}: {_ways_out(device)}")
        advice.append(f"{text}: little is left to decode with; {_ways_out(device)}")
    return advice


def _ways_out(device: torch.device) -> str:
    ways = "give a narrower dtype (bfloat16), speed='int8', 'fp8' or 'int4' (rounds layers)"
    if device.type == "cuda":
        ways += ", device_map='auto' (spreads layers, and leaves those that do not fit on the CPU)"
    else:
        ways += ", device_map= with a GPU for some of the layers"
    return f"{ways}, or end what else holds the memory"


def _of_meminfo(name: str) -> int | None:
    return _in_kilobytes(MEMINFO, name)


def _in_kilobytes(path: Path, name: str) -> int | None:
    """Returns the bytes that a line of a file of /proc names; None without such a line."""
    if not path.exists():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        named, _, value = line.partition(":")
        if named == name:
            return int(value.split()[0]) * 1024
    return None


def _address_space() -> list[tuple[int, int]]:
    """Returns limit and use of the process's addresses, in bytes, if they are limited."""
    if not OWN_LIMITS.exists():
        return []
    for line in OWN_LIMITS.read_text(encoding="ascii").splitlines():
        name, _, values = line.partition("Max address space")
        used = _in_kilobytes(OWN_STATUS, "VmSize")
        if not name and values and values.split()[0].isdecimal() and used is not None:
            return [(int(values.split()[0]), used)]
    return []


def _limits() -> list[tuple[int, int]]:
    """Returns limit and use of each group that bounds this process, in bytes.

    Files that the system can drop from memory count as free, as in MemAvailable.
    """
    found = []
    for folder in _groups():
        for limit_file, used_file, droppable in _VERSIONS:
            limit, used = _number(folder / limit_file), _number(folder / used_file)
            if limit is not None and used is not None:
                found.append((limit, max(used - _stat(folder / "memory.stat", droppable), 0)))
    return found


def _groups() -> list[Path]:
    """Returns the folders of the process's memory groups, and of those that they lie in."""
    folders = [GROUPS, GROUPS / "memory"]  # as a container sees its own
    if OWN_GROUP.exists():
        for line in OWN_GROUP.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            root = GROUPS / "memory" if "memory" in controllers.split(",") else GROUPS
            if controllers and root == GROUPS:
                continue  # a group of something else, of version 1
            inside = root / path.strip("/")
            folders += [inside, *(one for one in inside.parents if root in one.parents)]
    return list(dict.fromkeys(folders))


def _number(path: Path) -> int | None:
    """Returns the number in a file; None where there is none ("max": no limit)."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:  # not there, or not to be read by this user
        return None
    return int(text) if text.isdecimal() else None


def _stat(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return int(dict(line.split(" ", 1) for line in lines).get(name, 0))
