"""Checks what claims to be the record of a row: files come from elsewhere."""

from __future__ import annotations

from math import isfinite
from typing import Any

from dllm.trace.text import visible

_FIELDS = (
    *("label", "prompt_length", "mask_token_id", "tokens", "given", "commit_step", "confidence"),
    *("pieces", "special", "joined", "blocks", "changes", "num_steps", "forwards", "row_forwards"),
    "finish_reason",
)
_MOST_STEPS = 1_000_000  # more is damage, and would fill the memory


def checked(record: object, version: int) -> dict[str, Any]:
    """Returns the fields of a record with their types; raises ValueError that names the fault."""
    if not isinstance(record, dict) or "dllm_trace" not in record:
        raise ValueError("it is no trace: the key 'dllm_trace' is missing")
    if record["dllm_trace"] != version:
        raise ValueError(
            f"its format is dllm_trace={record['dllm_trace']!r}, and this version reads {version}"
        )
    missing = [name for name in _FIELDS if name not in record]
    unknown = sorted(map(str, set(record) - {*_FIELDS, "dllm_trace"}))
    if missing or unknown:
        raise ValueError(f"its keys are wrong: missing {missing}, unknown {unknown}")
    try:
        found = _typed(record)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"its values are wrong: {error}") from None
    _check(found)
    return found


def _typed(record: dict[str, Any]) -> dict[str, Any]:
    numbers = ("prompt_length", "mask_token_id", "num_steps", "forwards", "row_forwards")
    lists = ("tokens", "given", "commit_step", "special")
    changes = record["changes"]
    return {
        **{name: _int(record[name]) for name in numbers},
        **{name: tuple(_int(value) for value in record[name]) for name in lists},
        **{name: visible(str(record[name])) for name in ("label", "finish_reason")},
        "confidence": tuple(None if v is None else float(v) for v in record["confidence"]),
        "pieces": {int(token): visible(str(text)) for token, text in record["pieces"].items()},
        "joined": tuple((_int(s), _int(e), visible(str(text))) for s, e, text in record["joined"]),
        "blocks": tuple((_int(column), _int(step)) for column, step in record["blocks"]),
        "changes": None if changes is None else tuple(_write(change) for change in changes),
    }


def _write(change: Any) -> tuple[int, int, int]:
    step, column, token = map(_int, change)
    return step, column, token


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} must be a whole number")
    return value


def _check(found: dict[str, Any]) -> None:
    """Checks that every column, step and token that is named exists."""
    length, steps = len(found["tokens"]), found["num_steps"]
    slots = length - found["prompt_length"]
    changes = found["changes"] or ()
    columns = [*found["given"], *(c for c, _ in found["blocks"]), *(c for _, c, _ in changes)]
    ends = [column for start, end, _ in found["joined"] for column in (start, end - 1)]
    named = [*found["commit_step"], *(step for step, _, _ in changes)]
    tokens = {*found["tokens"], found["mask_token_id"], *(token for _, _, token in changes)}
    wild = any(value is not None and not isfinite(value) for value in found["confidence"])
    faults = {
        "prompt_length": not 0 <= slots <= length,
        "commit_step": len(found["commit_step"]) != slots,
        "confidence": len(found["confidence"]) != slots or wild,
        "num_steps": not 0 <= steps <= _MOST_STEPS,
        "a column": not all(0 <= column < length for column in [*columns, *ends]),
        "a step": not all(-1 <= step < steps for step in named),
        "a step of changes": not all(step >= 0 for step, _, _ in changes),
        "pieces": not tokens <= set(found["pieces"]),
    }
    wrong = [name for name, fault in faults.items() if fault]
    if wrong:
        raise ValueError(f"its values do not fit each other: {', '.join(wrong)}")
