"""Two hundred hostile programs at each level: none passes, stays, or changes what is outside."""

from __future__ import annotations

import itertools
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dllm.eval.sandbox import Level, Limits, Sandbox
from dllm.eval.sandbox import sandbox as module
from tests.support.hostile import HARMLESS, HOSTILE, KINDS, TOGETHER
from tests.support.marks import SLOW, WHOLE
from tests.support.sandboxes import (
    LEVELS,
    World,
    files_of,
    has_landlock,
    processes_of,
    sandbox_at,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox is for Linux")

LIMITS = Limits(cpu_seconds=1, seconds=2.0, memory=1 << 28, file_size=4 << 20, disk=16 << 20)
MARGIN = 4.0  # seconds, on a busy machine
# Of each kind one quick program, at levels in turn. In the slow suite each program is at one level,
# those of a kind at all of them in turn; each program at each level is the whole.
FIRST = [f"{kind}: {next(iter(programs))}" for kind, programs in KINDS.items()]
QUICK = {(name, LEVELS[n % len(LEVELS)]) for n, name in enumerate(FIRST)}
TURNS = {(name, LEVELS[(n + 1) % len(LEVELS)]) for n, name in enumerate(HOSTILE)}
CROSSED = [
    pytest.param(name, level, marks=() if case in QUICK else SLOW if case in TURNS else WHOLE)
    for name, level in itertools.product(HOSTILE, LEVELS)
    for case in [(name, level)]
]
STRANGER = 0x7ABC0000 + os.getpid() % 0xFFFF


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World.made(stack)


def own_state() -> tuple[object, ...]:
    """What a program could do to this process."""
    number = len(list(Path("/proc/self/fd").iterdir()))
    limits = [resource.getrlimit(n) for n in range(16)]
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    return (
        number,
        limits,
        nice,
        os.sched_getaffinity(0),
        Path("/proc/self/oom_score_adj").read_text(),
    )


def test_every_kind_is_at_every_level() -> None:
    kinds = {(name.partition(":")[0], level) for name, level in TURNS}
    assert kinds == set(itertools.product(KINDS, LEVELS))
    assert {name for name, _ in TURNS} == set(HOSTILE)


@pytest.mark.parametrize(("name", "level"), CROSSED)
def test_an_attack_fails(
    name: str, level: Level, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = sandbox_at(level).python
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # the user that root becomes may go there
    folder.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(module, "_stranger", lambda: STRANGER)
    before, start = own_state(), time.monotonic()
    verdict = Sandbox(level, LIMITS, python).run(world.aimed(HOSTILE[name]))
    assert time.monotonic() - start < LIMITS.seconds + MARGIN
    assert not verdict.passed
    assert verdict.level == level
    assert len(verdict.detail) <= 500
    assert verdict.detail.isprintable() or set(verdict.detail) & {"\n", "\t"}
    folder.rmdir()  # empty
    assert own_state() == before
    if os.geteuid() == 0:
        assert processes_of(STRANGER) == []
        assert files_of(STRANGER) == []
    if level != "limits" or has_landlock():
        world.check()


@pytest.mark.parametrize(
    "level", [*LEVELS[:1], *(pytest.param(n, marks=pytest.mark.slow) for n in LEVELS[1:])]
)
@pytest.mark.parametrize("name", [*HARMLESS, *TOGETHER])
def test_a_harmless_program_passes(name: str, level: Level) -> None:
    box = Sandbox(level, Limits(), sandbox_at(level).python)
    if name in TOGETHER and level == "limits":
        assert not box.run(TOGETHER[name]).passed  # it may start nothing
        return
    verdict = box.run({**HARMLESS, **TOGETHER}[name])
    assert verdict.passed, verdict
