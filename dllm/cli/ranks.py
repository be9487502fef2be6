"""Commands in several processes that hold one model together (tensor parallel)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from typer import Exit

from dllm.cli.shown import say
from dllm.models.model import HostedModel


def follow_if_asked(
    count: int | None, place: dict[str, Any], load: Callable[[], HostedModel]
) -> None:
    """Ends a process that is not the first of `count`, after it has run the first one's passes.

    Notes the number in `place`, which `load` reads. To be called before a command reads, writes or
    listens: only the first process does.
    """
    place["tensor_parallel"] = count
    if count is None:
        return
    # Start-up time: few start several processes.
    from dllm.models.parallel import check_launch, follow

    if check_launch(count, "--tensor-parallel") == 0:
        return
    # The launcher passes them on to all; the first process decides when all end.
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, signal.SIG_IGN)
    follow(load())
    raise Exit


def end_when_lost(model: HostedModel) -> None:
    """Has this process end with a message once another one is lost, whatever it is doing."""
    runner: Any = model.runner
    if hasattr(runner, "on_lost"):  # the first process
        runner.on_lost = _end


def _end(error: Exception) -> None:
    say(f"error: {error}")
    # Not by an exception: a server would answer with it and go on, and other threads may wait for
    # processes that are no more.
    os._exit(1)
