"""`dllm background-frequency`: counts the tokens of a corpus, for the scheduler `pc_sampler`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from rich.progress import track
from typer import Argument, Option

from dllm.cli import options
from dllm.cli.shown import Terminal, say
from dllm.models.loading.folder import TOKENIZER, Source, find_folder
from dllm.models.loading.tokenizer import read_tokenizer
from dllm.schedulers.frequencies import count_tokens

_TOGETHER = 1000  # lines that are encoded at a time


def background_frequency(
    texts: Annotated[list[Path], Argument(help="Files of text, in UTF-8.")],
    output: Annotated[Path, Option("--output", "-o", help="FILE.json.")],
    model: options.Model = "tiny",
    revision: options.Revision = None,
    force: Annotated[bool, Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Counts how often some texts have each token of a model.

    dllm background-frequency corpus.txt -o frequencies.json
    dllm generate "..." -s pc_sampler:frequencies.json
    """
    if output.exists() and not force:
        raise ValueError(f"--output {output} is there already: name another file, or give --force")
    for path in texts:
        if not path.is_file():
            raise ValueError(f"there is no file {str(path)!r}: name files of text")
    tokenizer = read_tokenizer(find_folder(model, Source(revision), TOKENIZER))
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer, which alone can tell its tokens")

    def encoded() -> Iterator[list[int]]:
        for lines in _parts(texts):
            yield from tokenizer(lines, add_special_tokens=False)["input_ids"]

    found = count_tokens(encoded())
    found.write(output)
    say(f"{output}: {found.total} tokens, {len(found.counts)} different ones")


def _parts(paths: list[Path]) -> Iterator[list[str]]:
    """Yields the lines of files, some at a time, and shows how far it is."""
    terminal = Terminal(stderr=True)
    for path in track(paths, "counting", console=terminal, disable=not terminal.is_terminal):
        lines: list[str] = []
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    lines.append(line)
                    if len(lines) == _TOGETHER:
                        yield lines
                        lines = []
        except UnicodeError as error:
            raise ValueError(f"{path} is no text in UTF-8: {error}") from None
        if lines:
            yield lines
