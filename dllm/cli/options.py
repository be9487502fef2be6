"""Options, checks and an exit code that several sub-commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from dllm.cli import defaults
from dllm.cli.commands import INTERRUPTED as INTERRUPTED

_BEGINNING = 1 << 16  # characters in which a file says what it is

_OWN = "the checkpoint's, else {}"  # of a setting that a checkpoint may recommend

Model = Annotated[str, Option("--model", "-m", help='"tiny", a checkpoint folder or a hub id.')]
Revision = Annotated[
    str | None,
    Option(help="Branch, tag or commit of a hub id.", show_default="the hub's main branch"),
]
Scheduler = Annotated[
    str | None,
    Option(
        *("--scheduler", "-s"),
        help='Such as "threshold:0.9"; `dllm methods` lists all.',
        show_default=_OWN.format(defaults.SCHEDULER),
    ),
]
Schedulers = Annotated[
    list[str] | None,
    Option(
        *("--scheduler", "-s"),
        help='Such as "threshold:0.9"; repeat to compare several.',
        show_default=_OWN.format(defaults.SCHEDULER),
    ),
]
Cache = Annotated[
    str | None,
    Option(
        *("--cache", "-c"),
        help='"none", "prefix", "dual", ...; `dllm methods` lists all.',
        show_default=_OWN.format(defaults.CACHE),
    ),
]
Caches = Annotated[
    list[str] | None,
    Option(
        *("--cache", "-c"),
        help='"none", "prefix", "dual", ...; repeat to compare several.',
        show_default=_OWN.format(defaults.CACHE),
    ),
]
Verifier = Annotated[
    str | None,
    Option(
        *("--verifier", "-v"),
        help='"ssd:draft_length=4", "freedave:4", ...',
        show_default="none",
    ),
]
TensorParallel = Annotated[
    int | None,
    Option(
        min=2,
        max=2**10,
        help="Processes, started by torchrun, that hold the model together.",
        show_default="one holds it",
    ),
]
Batch = Annotated[
    int | None,
    Option(
        "--batch-size",
        help="Rows decoded at a time; other prompts wait.",
        show_default="by memory and shape",
    ),
]
AtATime = Annotated[
    int | None,
    Option(
        "--batch-size",
        help="Rows decoded at a time; other problems wait.",
        show_default=f"what fits, up to {defaults.ROWS}",
    ),
]
NewTokens = Annotated[
    int | None,
    Option(
        *("--max-new-tokens", "-n"),
        help="Slots after each prompt.",
        show_default=_OWN.format(defaults.MAX_NEW_TOKENS),
    ),
]
Block = Annotated[
    int | None,
    Option(
        *("--block-length", "-b"),
        help="Columns decoded together.",
        show_default=f"the model's own, else {defaults.BLOCK_LENGTH}, or fewer for fewer slots",
    ),
]
Stop = Annotated[
    list[str] | None,
    Option(help="Text that ends an answer and is no part of it; repeatable.", show_default="none"),
]
Answers = Annotated[
    int | None,
    Option("--samples", min=1, max=2**10, help="Answers to each prompt.", show_default="1"),
]
Temperature = Annotated[
    float | None,
    Option(
        *("--temperature", "-t"),
        help="0 takes the most probable token.",
        show_default=_OWN.format(f"{defaults.TEMPERATURE:g}"),
    ),
]
Seed = Annotated[
    int | None,
    Option(help="Seed of sampled tokens and random orders.", show_default="another each time"),
]
Dtype = Annotated[
    str | None, Option(help="float32, bfloat16, ...", show_default="the checkpoint's own")
]
Examples = Annotated[
    Path | None,
    Option(
        help="JSON lines with solved problems for gsm8k's prompts.",
        show_default="those that come with the style",
    ),
]
RunCode = Annotated[
    bool, Option("--run-code", help="Run model-written code, in a sandbox, to score it.")
]
Prompts = Annotated[
    Path | None,
    Option(help='Text, a prompt a line, or .jsonl with "prompt".', show_default="none"),
]
ChatTemplate = Annotated[bool, Option("--chat", help="Put each prompt into the chat template.")]
Together = Annotated[int, Option("--batch-size", help="Prompts decoded together.")]
Device = Annotated[
    str | None, Option(help="cpu, cuda, cuda:1, ...", show_default="torch's own, mostly cpu")
]
Family = Annotated[
    str | None,
    Option(
        help="The checkpoint's family, if it is your own: module:NAME or path/file.py:NAME.",
        show_default="by its architecture",
    ),
]
Adapter = Annotated[
    str | None,
    Option(
        help="LoRA in PEFT's layout, merged into the model: a folder or a hub id.",
        show_default="none",
    ),
]
DraftAdapter = Annotated[
    str | None,
    Option(
        help="LoRA that verifier linear drafts with alone: a folder, also one of the checkpoint's.",
        show_default="none",
    ),
]
Attention = Annotated[
    str | None,
    Option(help='"full" or "block_causal:32", if a checkpoint cannot say.', show_default="its own"),
]
DeviceMap = Annotated[
    str | None,
    Option(
        help='"auto" spreads the layers over all devices; or {module: device, ...}, where "" is '
        "the whole.",
        show_default="all on one device",
    ),
]
Speed = Annotated[
    str,
    Option(
        help="Faster passes: auto (what pays on this machine), none, or ways such as "
        '"fused+captured", int8, int4, fp8.',
    ),
]
Set = Annotated[
    list[str] | None,
    Option(
        "--set",
        help="Any other setting as name=value, such as top_p=0.95; repeatable.",
        show_default="none",
    ),
]
Config = Annotated[
    Path | None,
    Option(
        "--config",
        help="JSON or YAML with settings, named as in Python; options given here win over it.",
        show_default="none",
    ),
]
Recipe = Annotated[
    str | None,
    Option(
        help="Settings that `dllm tune` found: its recipe.json, or own, the checkpoint's; "
        "options given here win over it.",
        show_default="none",
    ),
]
Fresh = Annotated[
    bool, Option("--fresh", help="Start anew; what is in --output is kept under a name with .old.")
]
Json = Annotated[bool, Option("--json", help="Print JSON and nothing else.")]


def inputs(texts: list[str], as_chats: bool) -> Any:
    """Returns texts as `generate` takes them, each as it is or as the message of a user."""
    return [[{"role": "user", "content": text}] for text in texts] if as_chats else texts


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """Lets errors of the system that come from writing a file name it; a full disk's do not."""
    try:
        yield
    except OSError as error:
        if path is not None and error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def check_writable(path: Path | None, option: str, mark: str = "") -> None:
    """Checks that a file can be written, so that no work is done for one that cannot.

    A file that is there already must have `mark` near its beginning, else it is not ours to write
    over. Raises ValueError with the option's name. Leaves nothing behind; a folder is made later.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file")
    nearest = next(part for part in path.absolute().parents if part.exists())
    if not nearest.is_dir():
        raise ValueError(f"{option} {path}: {nearest} is a file, where a folder is needed")
    if not os.access(path if path.exists() else nearest, os.W_OK):
        raise ValueError(f"{option} {path}: this user may not write there: choose another path")
    if mark and path.exists() and path.stat().st_size:
        with path.open(encoding="utf-8", errors="replace") as file:
            if mark not in file.read(_BEGINNING):
                raise ValueError(f"{option} {path} exists and holds something else: choose another")
