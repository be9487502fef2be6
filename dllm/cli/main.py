"""The `dllm` command and its sub-commands."""

from __future__ import annotations

import errno
import os
import re
import sys

import typer

from dllm.cli.ablate import ablate
from dllm.cli.cache_error import cache_error
from dllm.cli.chat import chat
from dllm.cli.compare import compare
from dllm.cli.demo import demo
from dllm.cli.doctor import doctor
from dllm.cli.evaluate import evaluate
from dllm.cli.generate import generate
from dllm.cli.methods import methods
from dllm.cli.options import INTERRUPTED, say
from dllm.cli.trace import trace
from dllm.cli.train_filter import train_filter
from dllm.cli.verify import verify
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError

_OF_SETTINGS = re.compile("^unknown setting | a second time$")  # the TypeErrors of `resolve`
_MEANING = {
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "that is a folder: name a file",
    errno.ENOTDIR: "a part of that path is a file, where a folder is needed: choose another path",
    errno.EEXIST: "a file is there, where a folder is needed: choose another path",
    errno.EACCES: "this user may not read or write it: change its permissions or choose another "
    "path",
    errno.EPERM: "the system does not allow this: choose another path",
    errno.EROFS: "its disk is read-only: choose another path",
    errno.ENOSPC: "its disk is full: make room, or choose another path",
}

app = typer.Typer(
    help="Parallel decoding for diffusion language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
RUNNING = (generate, chat, evaluate, compare, demo)
BESIDE = (methods, train_filter, cache_error, verify, doctor, trace, ablate)
for command in (*RUNNING, *BESIDE):
    app.command("eval" if command is evaluate else None)(command)


def message(error: Exception) -> str:
    """Returns an error in words; the system's own ones name a path and what to do about it."""
    if isinstance(error, OSError) and error.filename is not None and error.errno in _MEANING:
        return f"{os.fspath(error.filename)}: {_MEANING[error.errno]}"
    return str(error)


def main() -> None:
    """Runs the command line; what a user can mend is one line on stderr, not a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(INTERRUPTED)
    except (ValueError, TypeError, OSError, BrokenLogitsError, NotEnoughMemoryError) as error:
        if isinstance(error, TypeError) and not _OF_SETTINGS.search(str(error)):
            raise  # a fault of ours, not of the user's
        say(f"error: {message(error)}")
        sys.exit(2)
