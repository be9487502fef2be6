"""Records of rows, step by step, as plain values: files keep them, viewers show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from dllm.output import GenerationOutput
from dllm.state.canvas import NEVER
from dllm.trace.text import joined, pieces_of, special_of, visible

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
_DIGITS = 4  # of a confidence
_MOST_STEPS = 1_000_000  # more is damage, and would fill the memory

Kind = Literal["commit", "edit", "remask", "fill"]


@dataclass(frozen=True)
class Frame:
    """The canvas of a row before its first step or after a step."""

    tokens: tuple[int, ...]
    written: tuple[int, ...]  # step that wrote what stands in each column, -1: none did
    changed: Mapping[int, Kind]  # the columns that this step changed


@dataclass(frozen=True)
class TraceRecord:
    """One row of a generation: its texts, and what each step wrote.

    Columns count from the prompt's first token, steps from 0. A slot is a column after the prompt.
    Equal to what the row would give alone.
    """

    label: str
    prompt_length: int
    mask_token_id: int
    tokens: tuple[int, ...]  # (L,) in the end, prompt included
    given: tuple[int, ...]  # slots that held text before the first step
    commit_step: tuple[int, ...]  # of each slot, -1: the model did not commit it
    confidence: tuple[float | None, ...]  # of each slot at that moment
    pieces: Mapping[int, str]  # text of each token that occurs
    special: tuple[int, ...]  # those of them that are no text
    joined: tuple[tuple[int, int, str], ...]  # columns [start, end) that are one character together
    blocks: tuple[tuple[int, int], ...]  # (first column, steps before it) of each block entered
    changes: tuple[tuple[int, int, int], ...] | None  # (step, column, token) of a revising method
    num_steps: int
    forwards: int
    row_forwards: int  # the same, with every variant of the row counted
    finish_reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON-ready values."""
        return {"dllm_trace": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, record: object) -> TraceRecord:
        """Returns the record that `to_json` gave; raises ValueError for anything else."""
        return cls(**_checked(record))

    @property
    def writes(self) -> tuple[tuple[int, int, int], ...]:
        """What the steps wrote, (step, column, token) in order."""
        if self.changes is not None:
            return self.changes
        slots = enumerate(self.commit_step, start=self.prompt_length)
        return tuple(sorted((s, c, self.tokens[c]) for c, s in slots if s != NEVER))

    def frames(self) -> Iterator[Frame]:
        """Yields the canvas before the first step and after each, `num_steps` + 1 in all.

        What an end token filled or cut off shows in the last one.
        """
        start, mask, infill = self.prompt_length, self.mask_token_id, set(self.given)
        columns = enumerate(self.tokens)
        tokens = [t if column < start or column in infill else mask for column, t in columns]
        written = [NEVER] * len(tokens)
        steps: list[list[tuple[int, int]]] = [[] for _ in range(self.num_steps)]
        for step, column, token in self.writes:
            steps[step].append((column, token))
        yield Frame(tuple(tokens), tuple(written), {})
        for step, writes in enumerate(steps):
            changed: dict[int, Kind] = {}
            for column, token in writes:
                fresh = tokens[column] == mask
                changed[column] = "remask" if token == mask else "commit" if fresh else "edit"
                tokens[column], written[column] = token, step
            if step == self.num_steps - 1:
                for column, token in enumerate(self.tokens):
                    if tokens[column] != token:
                        changed[column] = "fill"
                        tokens[column], written[column] = token, NEVER
            yield Frame(tuple(tokens), tuple(written), changed)


def record_of(
    out: GenerationOutput, row: int, tokenizer: PreTrainedTokenizerBase | None, label: str = ""
) -> TraceRecord:
    """Returns the record of a row; without a tokenizer tokens are shown by their ids."""
    trace, metrics = out.trace, out.metrics.rows[row]
    start, length = int(trace.prompt_length[row]), int(trace.length[row])
    tokens = tuple(trace.tokens[row, :length].tolist())
    steps = tuple(trace.commit_step[row, start:length].tolist())
    sure = zip(trace.confidence[row, start:length].tolist(), steps, strict=True)
    slots = enumerate(trace.given[row, start:length].tolist(), start=start)
    entries = enumerate(trace.block_entry[row, :length].tolist())
    changes = None if trace.changes is None else trace.changes[row]
    used = {*tokens, trace.mask_token_id, *(token for _, _, token in changes or ())}
    # With a verifier a step is not a forward; without, the last forwards may have changed nothing.
    forwards = 0 if metrics.accepted else metrics.forwards
    return TraceRecord(
        label=label,
        prompt_length=start,
        mask_token_id=trace.mask_token_id,
        tokens=tokens,
        given=tuple(column for column, given in slots if given),
        commit_step=steps,
        confidence=tuple(None if s == NEVER else round(value, _DIGITS) for value, s in sure),
        pieces=pieces_of(tokenizer, used),
        special=tuple(sorted(special_of(tokenizer, used) | {trace.mask_token_id})),
        joined=joined(tokenizer, tokens),
        blocks=tuple((column, entry) for column, entry in entries if entry != NEVER),
        changes=changes,
        num_steps=max(trace.num_steps(row), forwards),
        forwards=metrics.forwards,
        row_forwards=metrics.row_forwards,
        finish_reason=metrics.finish_reason,
    )


def _checked(record: object) -> dict[str, Any]:
    """Returns the fields of a record with their types; raises ValueError that names the fault.

    Files come from elsewhere.
    """
    if not isinstance(record, dict) or "dllm_trace" not in record:
        raise ValueError("it is no trace: the key 'dllm_trace' is missing")
    if (found := record["dllm_trace"]) != FORMAT:
        raise ValueError(f"its format is dllm_trace={found!r}, and this version reads {FORMAT}")
    names = [field.name for field in fields(TraceRecord)]
    missing = [name for name in names if name not in record]
    unknown = sorted(map(str, set(record) - {*names, "dllm_trace"}))
    if missing or unknown:
        raise ValueError(f"its keys are wrong: missing {missing}, unknown {unknown}")
    try:
        values = _typed(record)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"its values are wrong: {error}") from None
    _check(values)
    return values


def _typed(record: dict[str, Any]) -> dict[str, Any]:
    numbers = ("prompt_length", "mask_token_id", "num_steps", "forwards", "row_forwards")
    lists = ("tokens", "given", "commit_step", "special")
    writes = record["changes"]
    if writes is not None:
        writes = tuple((_int(step), _int(column), _int(token)) for step, column, token in writes)
    return {
        **{name: _int(record[name]) for name in numbers},
        **{name: tuple(_int(value) for value in record[name]) for name in lists},
        **{name: visible(str(record[name])) for name in ("label", "finish_reason")},
        "confidence": tuple(None if v is None else float(v) for v in record["confidence"]),
        "pieces": {int(token): visible(str(text)) for token, text in record["pieces"].items()},
        "joined": tuple((_int(s), _int(e), visible(str(text))) for s, e, text in record["joined"]),
        "blocks": tuple((_int(column), _int(step)) for column, step in record["blocks"]),
        "changes": writes,
    }


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} must be a whole number")
    return value


def _check(values: dict[str, Any]) -> None:
    """Checks that every column, step and token that is named exists."""
    length, steps = len(values["tokens"]), values["num_steps"]
    slots, changes = length - values["prompt_length"], values["changes"] or ()
    columns = [*values["given"], *(c for c, _ in values["blocks"]), *(c for _, c, _ in changes)]
    columns += [column for start, end, _ in values["joined"] for column in (start, end - 1)]
    named = [*values["commit_step"], *(step for step, _, _ in changes)]
    tokens = {*values["tokens"], values["mask_token_id"], *(token for _, _, token in changes)}
    wild = any(value is not None and not isfinite(value) for value in values["confidence"])
    faults = {
        "prompt_length": not 0 <= slots <= length,
        "commit_step": len(values["commit_step"]) != slots,
        "confidence": len(values["confidence"]) != slots or wild,
        "num_steps": not 0 <= steps <= _MOST_STEPS,
        "a column": not all(0 <= column < length for column in columns),
        "a step": not all(-1 <= step < steps for step in named),
        "a step of changes": not all(step >= 0 for step, _, _ in changes),
        "pieces": not tokens <= set(values["pieces"]),
    }
    wrong = [name for name, fault in faults.items() if fault]
    if wrong:
        raise ValueError(f"its values do not fit each other: {', '.join(wrong)}")
