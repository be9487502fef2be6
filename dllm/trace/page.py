"""A replayed row as it is shown: the text of its cells, and a page of them for a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template

from dllm.state.canvas import NEVER
from dllm.trace import Frame, TraceRecord
from dllm.trace.text import plural, visible

OPEN, AGAIN = "·", "\u00d7"  # a mask; a mask where a token was taken back
LINE, TAB = "↵", "⇥"
START = 'mountTraces(document.getElementById("trace"), "records");'


def texts(record: TraceRecord, frame: Frame) -> list[str]:
    """Returns the text of every column of a frame; line ends stay, with a sign before them.

    The page's script does the same.
    Of columns that are one character together the first has it, once all of them are there.
    """
    shown = [_text(record, frame, column) for column in range(len(frame.tokens))]
    for start, end, text in record.joined:
        if frame.tokens[start:end] == record.tokens[start:end]:
            shown[start:end] = [text, *[""] * (end - start - 1)]
    return shown


def count(record: TraceRecord, frame: Frame, step: int) -> str:
    """Returns in words what the step before a frame did, and how much of the row is there."""
    kinds = list(frame.changed.values())
    mask, slots = record.mask_token_id, len(record.commit_step) - len(record.given)
    pairs = zip(frame.tokens, frame.written, strict=True)
    total = sum(token != mask and written != NEVER for token, written in pairs)
    parts = [f"step {step} of {record.num_steps}"]
    parts += [f"{kinds.count('commit')} committed"] if step else []
    more = {"edit": "edited", "remask": "masked again", "fill": "filled after the end"}
    parts += [f"{kinds.count(k)} {verb}" for k, verb in more.items() if k in kinds]
    parts.append(f"{total} of {plural(slots, 'slot')} committed")
    return " · ".join(parts)


def story(record: TraceRecord) -> str:
    """Returns in words what a row is and what it cost."""
    steps, forwards = plural(record.num_steps, "step"), plural(record.forwards, "forward")
    parts = [record.label] if record.label else []
    parts.append(f"{steps} in {forwards}")
    if record.row_forwards != record.forwards:
        parts.append(f"{record.row_forwards} with variants or drafts")
    return " · ".join([*parts, f"ended by: {record.finish_reason}"])


def block_at(record: TraceRecord, step: int) -> int:
    """Returns the first column of the block that a row was at after a step, -1 for none."""
    entered = [(entry, block) for block, (_, entry) in enumerate(record.blocks) if entry <= step]
    return record.blocks[max(entered)[1]][0] if entered else -1


def assets() -> tuple[str, str]:
    """Returns (css, js) of the viewer, for pages of one's own.

    The script defines `mountTrace(element, record)`, whose record is what `TraceRecord.to_json`
    gives, and `mountTraces(element, id)`, which reads a list of them from the text of an element.
    """
    return _asset("css"), _asset("js")


def as_script_data(value: object) -> str:
    """Returns JSON that ends no `<script>` element, whatever text it holds; ASCII alone."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page(records: Sequence[TraceRecord], title: str) -> str:
    """Returns an HTML page that replays the records; raises ValueError if there are none.

    Its policy allows the viewer's own style and script by their hashes and no request at all.
    """
    if not records:
        raise ValueError("a page needs at least one record")
    css, js = assets()
    scripts = f"script-src {hash_of(js)} {hash_of(START)}"
    policy = f"default-src 'none'; img-src data:; style-src {hash_of(css)}; {scripts}"
    return Template(_asset("html")).substitute(
        policy=policy,
        title=html.escape(visible(title)),
        css=css,
        js=js,
        start=START,
        records=as_script_data([record.to_json() for record in records]),
    )


def _asset(kind: str) -> str:
    return (files("dllm.trace") / f"page.{kind}").read_text(encoding="utf-8")


def hash_of(text: str) -> str:
    """Returns what a page's policy calls a style or script of that text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(record: TraceRecord, frame: Frame, column: int) -> str:
    token = frame.tokens[column]
    if token == record.mask_token_id:
        return OPEN if frame.written[column] == NEVER else AGAIN
    return record.pieces[token].replace("\n", f"{LINE}\n").replace("\t", TAB)
