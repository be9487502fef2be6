"""Commands in processes of their own, for what only a process shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from time import monotonic, sleep

# A job in the background of a script ignores Ctrl-C, and so would its children: they listen again.
LISTENING = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('dllm', run_name='__main__')"
)


def start_dllm(*arguments: str, pipe: bool = False) -> subprocess.Popen[str]:
    """Starts a command of `dllm` that listens to Ctrl-C, to a pipe too if asked for."""
    # Threads that spin would take the core from other tests.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(
        [sys.executable, "-c", LISTENING, *arguments],
        stdin=subprocess.PIPE if pipe else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for something that a process does; fails with its output if it ends before."""
    until = monotonic() + 90
    while not true():
        if process.poll() is not None or monotonic() > until:
            process.kill()
            raise AssertionError(process.communicate())
        sleep(0.01)
