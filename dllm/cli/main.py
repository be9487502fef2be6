"""The `dllm` command and its sub-commands."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from dllm import __version__
from dllm.cli.commands import INTERRUPTED, SUMMARIES, Commands

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
    errno.EINVAL: "that is no file to be written line by line: choose another path",
    errno.ENOSPC: "its disk is full: make room, or choose another path",
}

_WIDEST = 100  # columns of help: longer lines are hard to read
_LONGEST = 1000  # characters of a line of a message: a file that it quotes may be one line

# Without rich's boxes, which cut the names of options in a narrow terminal.
app = typer.Typer(
    cls=Commands,
    help="Parallel decoding for diffusion language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"dllm {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Parallel decoding for diffusion language models."""


def _listed() -> None:
    """Stands for a command in lists."""


for command, summary in SUMMARIES.items():
    app.command(command, help=summary)(_listed)


def message(error: Exception) -> str:
    """Returns an error in words; the system's own ones name a path and what to do about it."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in _MEANING:
        where = "standard output" if error.filename is None else os.fspath(error.filename)
        text = f"{where}: {_MEANING[error.errno]}"
    return "\n".join(_shortened(line) for line in text.splitlines())


def _shortened(line: str) -> str:
    left = len(line) - _LONGEST
    return line if left <= 0 else f"{line[:_LONGEST]} ... ({left} characters more)"


def main() -> None:
    """Runs the command line; what a user can mend is one line on stderr, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # text that a terminal's encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        app(terminal_width=min(shutil.get_terminal_size().columns, _WIDEST))
    except SystemExit:  # help, or a command that is done: no error is looked up
        raise
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(INTERRUPTED)
    except _mendable() as error:
        if isinstance(error, TypeError) and not _OF_SETTINGS.search(str(error)):
            raise  # a fault of ours, not of the user's
        if isinstance(error, OSError) and error.filename is None:
            _drop_output()
        _say(f"error: {message(error)}")
        sys.exit(2)
    except RecursionError:
        _say("error: a file or a value that was given is nested too deeply to be read")
        sys.exit(2)


def _say(line: str) -> None:
    """Prints a line on stderr."""
    from dllm.cli.shown import say  # start-up time: it imports torch

    say(line)


def _mendable() -> tuple[type[Exception], ...]:
    """Returns the errors that a user can mend, those of a decoding among them."""
    # Start-up time: looked up when there is an error.
    from dllm.decoding.languages.one_row import UnfillableRowError
    from dllm.decoding.loop import BrokenLogitsError
    from dllm.decoding.memory_limits import NotEnoughMemoryError
    from dllm.models.parallel.group import LostRankError

    of_decoding = (BrokenLogitsError, NotEnoughMemoryError, UnfillableRowError, LostRankError)
    return (ValueError, TypeError, OSError, *of_decoding)


def _drop_output() -> None:
    """Sends nowhere what standard output still holds, for the same error would come at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
