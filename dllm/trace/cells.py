"""What stands in each column of a replayed canvas, as text; the page's script does the same."""

from __future__ import annotations

from dllm.state.canvas import NEVER
from dllm.trace.record import Frame, TraceRecord

OPEN, AGAIN = "·", "\u00d7"  # a mask; a mask where a token was taken back
LINE, TAB = "↵", "⇥"


def texts(record: TraceRecord, frame: Frame) -> list[str]:
    """Returns the text of every column of a frame; line ends stay, with a sign before them.

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
    parts += [f"{kinds.count(k)} {said}" for k, said in more.items() if k in kinds]
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
    entered = [(entry, place) for place, (_, entry) in enumerate(record.blocks) if entry <= step]
    return record.blocks[max(entered)[1]][0] if entered else -1


def plural(number: int, noun: str) -> str:
    """Returns a number with its noun."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _text(record: TraceRecord, frame: Frame, column: int) -> str:
    token = frame.tokens[column]
    if token == record.mask_token_id:
        return OPEN if frame.written[column] == NEVER else AGAIN
    return record.pieces[token].replace("\n", f"{LINE}\n").replace("\t", TAB)
