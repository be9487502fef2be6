"""Calls and writes that the kernel refuses a program: a seccomp filter, and Landlock.

Both only take away, need no privileges, and cannot be taken off again. Standard library alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_RULESET, _RULE, _RESTRICT = 444, 445, 446  # landlock_create_ruleset and so on, everywhere


class Machine(NamedTuple):
    """A kind of processor: its number in audit(7), and the numbers of its calls."""

    audit: int
    calls: dict[str, int]


_CALLS = """
socket socketpair kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo prctl clone fcntl ioctl
ptrace process_vm_readv process_vm_writev kcmp memfd_create bpf userfaultfd perf_event_open
shmget shmat shmctl semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open
add_key request_key keyctl unshare setns mount umount2 pivot_root chroot
setpriority ioprio_set sched_setparam sched_setscheduler sched_setaffinity sched_setattr
prlimit64 migrate_pages move_pages
"""
_X86 = """
41 53 62 200 234 129 297 157 56 72 16
101 310 311 312 319 321 323 298
29 30 31 64 65 66 220 68 69 70 71 240
248 249 250 272 308 165 166 155 161
141 251 142 144 203 314
302 256 279
"""
_ARM = """
198 199 129 130 131 138 240 167 220 25 29
117 270 271 272 279 280 282 241
194 196 195 190 193 191 192 186 189 188 187 180
217 218 219 97 268 40 39 41 51
140 30 118 119 122 274
261 238 239
"""
# The same number everywhere.
_NEWER = """
pidfd_send_signal 424 io_uring_setup 425 open_tree 428 move_mount 429 fsopen 430 fsmount 432
pidfd_open 434 clone3 435 pidfd_getfd 438 process_madvise 440 mount_setattr 442 memfd_secret 447
"""


def _numbers(machine: str) -> dict[str, int]:
    newer = _NEWER.split()
    calls = dict(zip(_CALLS.split(), map(int, machine.split()), strict=True))
    return {**calls, **dict(zip(newer[::2], map(int, newer[1::2]), strict=True))}


_MACHINES = {
    "x86_64": Machine(0xC000003E, _numbers(_X86)),
    "aarch64": Machine(0xC00000B7, _numbers(_ARM)),
}
# Reach other processes, memory that no limit counts, other file systems, or the kernel's rarer
# corners. A program gets EPERM.
_NEVER = (
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise"),
    *("memfd_create", "memfd_secret", "bpf", "userfaultfd", "perf_event_open", "io_uring_setup"),
    *("shmget", "shmat", "shmctl", "semget", "semop", "semctl", "semtimedop"),
    *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "add_key", "request_key", "keyctl"),
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount"),
    *("fsopen", "fsmount", "mount_setattr", "socket"),
)
# Where processes of others can be seen: what stops, slows or ends them.
_NEVER_OUTSIDE = (
    *("tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_send_signal"),
    *("setpriority", "ioprio_set", "sched_setparam", "sched_setscheduler", "sched_setaffinity"),
    *("sched_setattr", "migrate_pages", "move_pages"),
)
_NEW_NAMESPACES = 0x7E020000  # of clone(2)
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _MASK, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000  # the latter plus an error number
_NUMBER, _ARCHITECTURE, _FIRST = 0, 4, 16  # where they stand in what the filter reads

Instruction = tuple[int, int, int, int]


def filter_calls(outside: bool) -> bool:
    """Installs the filter of calls; returns whether it is known for this processor.

    `outside`: no namespace hides the processes of others, so that signals to them are refused too.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return False
    code = b"".join(struct.pack("HBBI", *line) for line in _filter(machine, outside))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    arguments = [ctypes.c_ulong(_MODE_FILTER), ctypes.c_char_p(program)]
    if LIBC.prctl(_PR_SET_SECCOMP, *arguments, *[ctypes.c_ulong(0)] * 2) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
    return True


def _filter(machine: Machine, outside: bool) -> list[Instruction]:
    calls = machine.calls
    refuse = _REFUSE | errno.EPERM
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, machine.audit),  # another one has other numbers
        (_RETURN, 0, 0, refuse),
        (_LOAD, 0, 0, _NUMBER),
        (_ABOVE, 0, 1, 0x3FFFFFFF),  # the x32 calls of x86-64 lie above
        (_RETURN, 0, 0, refuse),
    ]
    for name in (*_NEVER, *(_NEVER_OUTSIDE if outside else ())):
        lines += [(_EQUAL, 0, 1, calls[name]), (_RETURN, 0, 0, refuse)]
    # The C library takes the older call, whose flags can be read, if this one does not exist.
    lines += [(_EQUAL, 0, 1, calls["clone3"]), (_RETURN, 0, 0, _REFUSE | errno.ENOSYS)]
    lines += _only(calls["clone"], 0, (_ANY_BIT, _NEW_NAMESPACES), refuse)
    # Orders to the kernel to kill it with its parent, and to send signals to somebody.
    lines += _among(calls["prctl"], 0, (1,), refuse)
    lines += _among(calls["fcntl"], 1, (8, 10, 15), refuse)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
    lines += _among(calls["ioctl"], 1, (0x8901, 0x8902), refuse)  # FIOSETOWN, SIOCSPGRP
    # Sockets of datagrams can be sent to any address, unlike the two other kinds of pairs.
    lines += _unless(calls["socketpair"], 1, (1, 5), refuse, mask=0xF)
    if outside:
        own = os.getpid()  # stays, since a program replaces this one in the same process
        lines += _unless(calls["kill"], 0, (0, own), refuse)
        lines += _unless(calls["tgkill"], 0, (own,), refuse)
        lines += _unless(calls["prlimit64"], 0, (0, own), refuse)
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _guarded(number: int, body: list[Instruction]) -> list[Instruction]:
    """Returns the body for one call alone; it ends with the number of the call loaded again."""
    body = [*body, (_LOAD, 0, 0, _NUMBER)]
    return [(_EQUAL, 0, len(body), number), *body]


def _only(number: int, at: int, test: tuple[int, int], refuse: int) -> list[Instruction]:
    code, value = test
    load = (_LOAD, 0, 0, _FIRST + 8 * at)
    return _guarded(number, [load, (code, 0, 1, value), (_RETURN, 0, 0, refuse)])


def _among(number: int, at: int, values: Iterable[int], refuse: int) -> list[Instruction]:
    body: list[Instruction] = [(_LOAD, 0, 0, _FIRST + 8 * at)]
    for value in values:
        body += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, refuse)]
    return _guarded(number, body)


def _unless(
    number: int, at: int, values: tuple[int, ...], refuse: int, mask: int = 0xFFFFFFFF
) -> list[Instruction]:
    body: list[Instruction] = [(_LOAD, 0, 0, _FIRST + 8 * at), (_MASK, 0, 0, mask)]
    for left, value in zip(range(len(values), 0, -1), values, strict=True):
        body.append((_EQUAL, left, 0, value))  # over the rest and the refusal
    return _guarded(number, [*body, (_RETURN, 0, 0, refuse)])


def write_only_in(folder: str) -> bool:
    """Refuses writes outside of a folder; returns whether the kernel has Landlock.

    From its version 6 on (Linux 6.12) signals to processes outside and abstract sockets too.
    """
    version = LIBC.syscall(_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    # WRITE_FILE and all that removes and makes; then REFER and TRUNCATE, which came later.
    writes = 0x1FF2 | (0x2000 if version >= 2 else 0) | (0x4000 if version >= 3 else 0)
    attributes = struct.pack("QQQ", writes, 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _landlock(_RULESET, attributes, ctypes.c_size_t(size), 0)
    for path, allowed in ((folder, writes), ("/dev/null", writes & 0x4002)):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _landlock(_RULE, rules, 1, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    _landlock(_RESTRICT, rules, 0)
    os.close(rules)
    return True


def _landlock(number: int, *arguments: object) -> int:
    result: int = LIBC.syscall(number, *arguments)
    if result < 0:
        fault = ctypes.get_errno()
        raise OSError(fault, f"landlock: {os.strerror(fault)}")
    return result
