"""`dllm doctor`: what of this machine, or of a checkpoint, would be slow or fail."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text
from typer import Argument

from dllm.cli import options
from dllm.cli.shown import Terminal
from dllm.doctor import examine

FAILED = 1  # exit code
STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def doctor(
    model: Annotated[
        str | None, Argument(help='"tiny", a checkpoint folder or a downloaded hub id.')
    ] = None,
    revision: options.Revision = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Looks at the machine, and at a checkpoint without loading it.

    dllm doctor tiny
    """
    found, console = [], Terminal()
    for finding in examine(model, device, revision, adapter):
        found.append(finding)
        if not as_json:
            level = f"{finding.level:<8}", STYLES[finding.level]
            line = Text.assemble(level, (f"{finding.subject}: ", "bold"), finding.text)
            console.print(line, soft_wrap=True)
        if finding.way_out and not as_json:
            console.print(Text(f"{'':<8}-> {finding.way_out}"), soft_wrap=True)
    levels = Counter(finding.level for finding in found)
    if as_json:
        record = [asdict(finding) for finding in found]
        print(json.dumps({"ok": not levels["failure"], "findings": record}))
    else:
        console.print(f"{levels['failure']} failure(s), {levels['warning']} warning(s)")
    if levels["failure"]:
        raise typer.Exit(FAILED)
