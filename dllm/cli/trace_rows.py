"""What a file of traces holds: as a table, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dllm.trace.file import Held
from dllm.trace.page import texts
from dllm.trace.record import TraceRecord
from dllm.trace.text import visible


def print_rows(held: Sequence[Held], as_json: bool) -> None:
    """Prints what a file holds, a line a row."""
    rows = [_described(one) for one in held]
    if as_json:
        print(json.dumps({"rows": rows}))
        return
    table = Table(box=SIMPLE_HEAD)
    for head in rows[0]:
        table.add_column(head.replace("_", " "), overflow="fold")
    for one in rows:
        table.add_row(*("" if value is None else visible(str(value)) for value in one.values()))
    Console(highlight=False, markup=False).print(table)


def _described(one: Held) -> dict[str, Any]:
    known: dict[str, Any] = {"row": one.number, "id": one.id or None, "run": one.run or None}
    if one.content is None:
        return {**known, "steps": None, "forwards": None, "ended_by": None, "label": "no trace"}
    record = one.record
    return {
        **known,
        "steps": record.num_steps,
        "forwards": record.forwards,
        "ended_by": record.finish_reason,
        "label": record.label.removeprefix(f"{one.id}: ") or None,
    }


def frames_of(record: TraceRecord, step: int | None) -> dict[str, Any]:
    """Returns the canvas after each step, or after one, as JSON-ready values."""
    frames = [
        {
            "step": number,
            "tokens": frame.tokens,
            "texts": texts(record, frame),
            "changed": {str(column): kind for column, kind in frame.changed.items()},
        }
        for number, frame in enumerate(record.frames())
        if step in (None, number)
    ]
    return {"label": record.label, "num_steps": record.num_steps, "frames": frames}
