"""The sub-commands by name: help and completion list them, and one is imported to be run."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import typer
from typer.core import TyperGroup

from dllm.cli.signature import signature_of

INTERRUPTED = 130  # what a shell reports after Ctrl-C

# The first line of each command's docstring, here once more: to read it there is to import torch.
SUMMARIES = {
    "generate": "Completes prompts, in one batch or from a file.",
    "chat": "Answers one message after the other.",
    "serve": "Answers requests of OpenAI's API; those that come together share a batch.",
    "eval": "Measures every scheduler with every cache on the same problems.",
    "compare": "Compares two runs problem by problem (McNemar's test) on those that both have "
    "answered.",
    "demo": "Decodes word problems with several schedulers and caches, offline, in a minute "
    "or two.",
    "methods": "Lists schedulers, caches and tasks.",
    "quantize": "Rounds weights to 8 or 4 bits and saves them in a folder that loads so.",
    "train-filter": "Trains a Learn2PD filter for one model and block length; a stopped run "
    "goes on.",
    "train-context-filter": "Trains a filter that reads a prediction with its neighbours, for one "
    "model.",
    "background-frequency": "Counts how often some texts have each token of a model.",
    "cache-error": "Compares each pass of a cached decoding with an exact one on the same canvas.",
    "verify": "Decodes problems without and with a verifier and compares them token by token.",
    "doctor": "Looks at the machine, and at a checkpoint without loading it.",
    "advise": "Says where a decoding step is bound, and what cache, verifier and batch change.",
    "trace": "Replays a generation: which tokens each step committed, edited or masked again.",
    "tune": "Searches the settings that cost least above a floor of accuracy.",
    "ablate": "Measures models, schedulers, caches and verifiers together and writes a report.",
}
_FUNCTIONS = {"eval": "evaluate"}  # others have the name of their command


class Commands(TyperGroup):
    """A group that lists commands without their modules."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else parser_of(name), rest


def function_of(name: str) -> Callable[..., None]:
    """Returns what a command runs; its module is imported now, and torch with it."""
    module, function = _place(name)
    found: Callable[..., None] = getattr(importlib.import_module(module), function)
    return found


def _place(name: str) -> tuple[str, str]:
    """Returns the module and the function of a command."""
    function = _FUNCTIONS.get(name, name.replace("-", "_"))
    return f"dllm.cli.{function}", function


@lru_cache
def parser_of(name: str) -> Any:
    """Returns a command as typer parses and runs it; its module is imported when it runs."""
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    one.command(name)(_run(name))
    return typer.main.get_command(one)


def _run(name: str) -> Callable[..., None]:
    """Returns a command that says so when Ctrl-C ends it, and has written all it prints."""

    @wraps(signature_of(*_place(name)))
    def run(**given: Any) -> None:
        command = function_of(name)
        if callable(signal.getsignal(signal.SIGINT)):  # from here on it is ours to say what ends
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            command(**given)
            sys.stdout.flush()  # what fails here is reported, at exit it would be a traceback
        except KeyboardInterrupt:
            from dllm.cli.shown import say  # start-up time: it imports torch

            say("interrupted")
            raise typer.Exit(INTERRUPTED) from None

    return run
