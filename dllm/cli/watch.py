"""Draws the canvas in the terminal while it fills."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from torch import Tensor

from dllm.generate import Stream
from dllm.state.window import StepEvent

PAUSE = 0.05  # seconds a step: the embedded model is faster than the eye
OPEN, DRAFT, NEW, DONE, AGAIN = "dim", "dim italic", "bold green", "default", "bold red"


def watch(running: Stream, console: Console | None = None) -> None:
    """Drains a stream and shows each row: what is there, new, masked again, proposed, open."""
    with Live(console=console or Console(), auto_refresh=False) as live:
        for number, event in enumerate(running, start=1):
            rows = [_row(running, event, row) for row in range(running.canvas.layout.num_rows)]
            caption = Text(f"forward {number} ({event.kind})", style="dim")
            live.update(Group(*rows, caption), refresh=True)
            time.sleep(PAUSE)


def _row(running: Stream, event: StepEvent, row: int) -> Text:
    canvas, tokenizer = running.canvas, running.model.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer, so there is no text to watch")
    start, end = int(canvas.prompt_length[row]), int(canvas.full_length[row])
    columns = event.columns[row].tolist()
    drafts = dict(zip(columns, event.drafts[row].tolist(), strict=True))
    new = _where(columns, event.committed[row])
    again = _where(columns, event.remasked[row])
    text = Text()
    if running.batch is not None:  # a place holds one prompt after the other
        text.append(f"{event.prompts[row]}: ", style=OPEN)
    for column, token in enumerate(canvas.tokens[row, start:end].tolist(), start=start):
        if token != canvas.layout.mask_token_id:
            if token not in canvas.layout.eos_token_ids:
                text.append(str(tokenizer.decode([token])), style=NEW if column in new else DONE)
        elif column in again:  # not its draft: often that is the very token that was taken back
            text.append("·", style=AGAIN)
        elif column in drafts:
            text.append(str(tokenizer.decode([drafts[column]])).strip() or "·", style=DRAFT)
        else:
            text.append("·", style=OPEN)
    return text


def _where(columns: list[int], chosen: Tensor) -> set[int]:
    return {column for column, is_so in zip(columns, chosen.tolist(), strict=True) if is_so}
