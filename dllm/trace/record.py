"""The story of one row as plain values: what a file keeps and a viewer shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from dllm.output import GenerationOutput
from dllm.state.canvas import NEVER
from dllm.trace.check import checked
from dllm.trace.text import joined, pieces_of, special_of

FORMAT = 1
_DIGITS = 4  # of a confidence

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
        return cls(**checked(record, FORMAT))

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
        start, kept = self.prompt_length, set(self.given)
        tokens = list(self.tokens)
        for column in range(start, len(tokens)):
            if column not in kept:
                tokens[column] = self.mask_token_id
        written, steps = [NEVER] * len(tokens), self._by_step()
        yield Frame(tuple(tokens), tuple(written), {})
        for step, writes in enumerate(steps):
            changed: dict[int, Kind] = {}
            for column, token in writes:
                changed[column] = self._kind(tokens[column], token)
                tokens[column], written[column] = token, step
            if step == self.num_steps - 1:
                for column, token in enumerate(self.tokens):
                    if tokens[column] != token:
                        changed[column] = "fill"
                        tokens[column], written[column] = token, NEVER
            yield Frame(tuple(tokens), tuple(written), changed)

    def _by_step(self) -> list[list[tuple[int, int]]]:
        steps: list[list[tuple[int, int]]] = [[] for _ in range(self.num_steps)]
        for step, column, token in self.writes:
            steps[step].append((column, token))
        return steps

    def _kind(self, before: int, after: int) -> Kind:
        if after == self.mask_token_id:
            return "remask"
        return "commit" if before == self.mask_token_id else "edit"


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
