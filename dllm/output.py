"""What a generation returns: texts, token ids, metrics, trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dllm.metrics import Meter, Metrics, RowMetrics
from dllm.state.canvas import NEVER, Canvas
from dllm.state.stopping import StopStrings
from dllm.state.trace import Trace
from dllm.state.window import TALLIED, Layout

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase

_SHOWN = 4  # rows that a short form tells of
_WIDTH = 60  # characters of an answer in it
_LISTED = 50  # rows of a table
_REPLAYED = 64  # steps and slots of a row that is replayed; a longer one has a page of `dllm trace`


@dataclass(frozen=True)
class Filled:
    """What a hole of a template was filled with."""

    text: str  # without special tokens
    tokens: tuple[int, ...]  # up to the answer's end token


@dataclass(frozen=True)
class Tried:
    """Lengths of a template's holes, and how well they did."""

    lengths: tuple[int, ...]  # tokens of each hole
    # Mean log probability of a token, in nats, by the model's own logits; with tokens="cal" the
    # calibrated confidence phi / B of the masked hole.
    score: float


@dataclass(frozen=True, repr=False)
class GenerationOutput:
    """The rows of a batch, in the order of their prompts."""

    sequences: tuple[tuple[int, ...], ...]  # token ids of each row, prompt included, no padding
    texts: tuple[str, ...] | None  # the answers up to their end token; None without a tokenizer
    metrics: Metrics
    trace: Trace
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, compare=False)  # to show rows
    # Of each answer the holes of its template, and the lengths that were compared, () where there
    # is one; () of answers without a template.
    holes: tuple[tuple[Filled, ...], ...] = ()
    tried: tuple[tuple[Tried, ...], ...] = ()

    def __repr__(self) -> str:
        metrics, answers = self.metrics, self.texts or self.sequences
        lines = [
            f"  {number}: {row.finish_reason}, {row.valid_tokens} tokens in {row.forwards} forwards"
            f", {shorten_repr(answer)}"
            for number, (row, answer) in enumerate(
                zip(metrics.rows[:_SHOWN], answers, strict=False)
            )
        ]
        left = len(metrics.rows) - len(lines)
        lines += [f"  ... and {left} rows more"] if left else []
        return "\n".join([f"GenerationOutput({metrics!r}:", *lines]) + ")"

    def _repr_html_(self) -> str:
        """Returns a table of the rows for a notebook, with the steps of a small one."""
        return html_table(self)


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C during a generation; `partial` holds what was committed until then."""

    def __init__(self, partial: GenerationOutput) -> None:
        super().__init__("generation interrupted; .partial holds what was committed")
        self.partial = partial


Write = tuple[int, int, int]  # forward, column, token


@dataclass(frozen=True)
class Chosen:
    """Some rows of a canvas, and what its history said of them."""

    canvas: Canvas
    places: Sequence[int] | None  # of the canvas, in this order; None: all
    changes: Mapping[int, Sequence[Write]]  # by prompt

    def of(self, values: Tensor) -> Tensor:
        """Returns the entries (n, ...) of the chosen rows, on the CPU."""
        return (values if self.places is None else values[list(self.places)]).cpu()


def collect(
    chosen: Chosen,
    meter: Meter,
    tokenizer: PreTrainedTokenizerBase | None,
    stop: StopStrings | None = None,
) -> GenerationOutput:
    """Returns the output of rows, which need not be finished."""
    canvas, trace = chosen.canvas, _trace(chosen)
    texts: list[str] | None = None if tokenizer is None else []
    drafts = canvas.drafts
    forwards = chosen.of(canvas.step if drafts is None else drafts.passes).tolist()
    accepted = None if drafts is None else chosen.of(drafts.taken).tolist()
    rows, sequences = [], []
    row_forwards = chosen.of(canvas.row_forwards).tolist()
    forced, tally = chosen.of(canvas.compelled).tolist(), _tally(chosen)
    kept = torch.minimum(canvas.length, canvas.kept_length)
    lengths = chosen.of(kept).tolist()
    for row, (length, (fixed, hidden)) in enumerate(
        zip(lengths, _flags(chosen, lengths), strict=True)
    ):
        shown, prompt = ~hidden, int(trace.prompt_length[row])
        ids = trace.tokens[row, :length][shown].tolist()
        slots = (~fixed)[shown][prompt:].tolist()
        answer = _answer(ids[prompt:], slots, canvas.layout)
        if stop is not None:
            answer = _stopped(answer, slots, stop)
        rows.append(
            RowMetrics(
                prompt_tokens=prompt,
                valid_tokens=answer.valid_tokens,
                raw_tokens=int((trace.commit_step[row] != NEVER).sum()),
                forwards=forwards[row],
                row_forwards=row_forwards[row],
                finish_reason=answer.finish_reason,
                accepted=() if accepted is None else tuple(accepted[row]),
                forced=forced[row],
                asked=tally.get(row, {}),
            )
        )
        sequences.append(tuple(ids))
        if texts is not None and tokenizer is not None:
            text = decode_tokens(tokenizer, answer.tokens, trace.mask_token_id)
            texts.append(text if stop is None else stop.cut(text))
    whole = None if texts is None else tuple(texts)
    return GenerationOutput(tuple(sequences), whole, meter.finish(tuple(rows)), trace, tokenizer)


def _tally(chosen: Chosen) -> dict[int, dict[str, int]]:
    """Returns what a grammar cost each row that it cost anything."""
    tally = chosen.of(chosen.canvas.tally)
    rows = tally.any(1).nonzero()[:, 0].tolist()
    return {row: dict(zip(TALLIED, tally[row].tolist(), strict=True)) for row in rows}


def _flags(chosen: Chosen, lengths: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields which of each row's first columns are fixed, and which are hidden, (length,) bool.

    One by one from a flat table: to walk over its rows makes a tensor for each of a long list.
    """
    canvas = chosen.canvas
    fixed, hidden = chosen.of(canvas.fixed), None
    if canvas.gap is not None:
        hidden = chosen.of(canvas.hidden)
    width, flat = fixed.shape[1], fixed.reshape(-1)
    none = torch.zeros(width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        start = row * width
        yield flat[start : start + length], (none if hidden is None else hidden[row])[:length]


@dataclass(frozen=True)
class _Answer:
    tokens: list[int]  # up to the first generated end token
    valid_tokens: int  # of them, generated and committed
    finish_reason: str


def _answer(generated: list[int], is_open: list[bool], layout: Layout) -> _Answer:
    """Returns a row's answer from what stands after its prompt; `is_open` marks its slots."""
    ends = [
        index
        for index, (token, slot) in enumerate(zip(generated, is_open, strict=True))
        if slot and token in layout.eos_token_ids
    ]
    stop = ends[0] if ends else len(generated)
    kept = zip(generated[:stop], is_open[:stop], strict=True)
    valid = sum(slot and token != layout.mask_token_id for token, slot in kept)
    if layout.mask_token_id in generated:
        return _Answer(generated[:stop], valid, "interrupted")
    return _Answer(generated[:stop], valid, "eos" if ends else "length")


def _stopped(answer: _Answer, is_open: list[bool], stop: StopStrings) -> _Answer:
    """Returns the answer up to the token that completes its first stop string, if it has one."""
    count = None if answer.finish_reason == "interrupted" else stop.count(answer.tokens)
    if count is None:
        return answer
    return _Answer(answer.tokens[:count], sum(is_open[:count]), "stop")


def _trace(chosen: Chosen) -> Trace:
    canvas, width = chosen.canvas, chosen.canvas.layout.num_columns
    steps = chosen.of(canvas.commit_step[:, :width])
    # Else nothing is cut, and no second table of a long list is made.
    if canvas.gap is not None or bool((canvas.kept_length < canvas.full_length).any()):
        cut = canvas.numbers[:width] >= canvas.kept_length[:, None]
        cut = cut if canvas.gap is None else cut | canvas.hidden[:, :width]
        steps = steps.masked_fill(chosen.of(cut), NEVER)
    prompts = chosen.of(canvas.prompts).tolist() if canvas.layout.keep_history else ()
    changes = tuple(tuple(chosen.changes.get(prompt, ())) for prompt in prompts)
    return Trace(
        tokens=chosen.of(canvas.tokens[:, :width]),
        commit_step=steps,
        confidence=chosen.of(canvas.commit_confidence[:, :width]),
        prompt_length=chosen.of(canvas.prompt_length),
        length=chosen.of(torch.minimum(canvas.full_length, canvas.kept_length)),
        given=chosen.of(canvas.given[:, :width]),
        block_entry=chosen.of(canvas.block_entry[:, :width]),
        mask_token_id=canvas.layout.mask_token_id,
        changes=changes if canvas.layout.keep_history else None,
    )


def read_history(canvas: Canvas, changes: dict[int, list[Write]]) -> None:
    """Moves what a canvas has noted of its writes to the lists of the prompts, each write once."""
    for written in canvas.history:
        rows, places = (written.before != written.after).cpu().nonzero(as_tuple=True)
        columns, tokens = written.columns[rows, places], written.after[rows, places]
        whose = written.prompts[rows]
        values = torch.stack([whose, written.step[rows], columns, tokens], 1).tolist()
        for prompt, step, column, token in values:
            changes.setdefault(prompt, []).append((step, column, token))
    canvas.history.clear()


def decode_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], mask_token_id: int
) -> str:
    """Returns the text of an answer; special tokens are left out unless a mask is among them."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=mask_token_id not in tokens))


# How rows are shown.


def shorten_repr(answer: Any) -> str:
    """Returns the beginning of an answer on one line, its control characters escaped."""
    text = repr(answer[: 2 * _WIDTH])
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."


def html_table(out: GenerationOutput) -> str:
    """Returns a table of prompts and answers, with nothing in it that a browser would obey."""
    heads = ("", "prompt", "answer", "ended by", "tokens", "forwards")
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(_html_row(out, row) for row in range(min(len(out.sequences), _LISTED)))
    left = len(out.sequences) - _LISTED
    more = f"<p>... and {left} rows more</p>" if left > 0 else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}<p>{escape(repr(out.metrics))}</p>"


def _html_row(out: GenerationOutput, row: int) -> str:
    metrics, ids = out.metrics.rows[row], out.sequences[row]
    answer = str(ids) if out.texts is None else out.texts[row]
    counts = (metrics.finish_reason, metrics.valid_tokens, metrics.forwards)
    cells = [str(row), _html_text(_text(out, ids[: metrics.prompt_tokens]))]
    cells += [_html_text(answer) + _html_replay(out, row), *map(str, counts)]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _html_replay(out: GenerationOutput, row: int) -> str:
    """Returns the steps of a row, folded away, new tokens in bold; '' if there are too many."""
    trace, steps = out.trace, out.trace.num_steps(row)
    start, end = int(trace.prompt_length[row]), int(trace.length[row])
    if steps > _REPLAYED or end - start > _REPLAYED or out.tokenizer is None:
        return ""
    lines, before = [], None
    for canvas in trace.replay(row):
        pieces = []
        for column in range(start, end):
            token = canvas[column]
            text = "\u00b7" if token == trace.mask_token_id else _text(out, (token,))
            new = before is not None and before[column] != token
            pieces.append(f"<b>{_html_text(text)}</b>" if new else _html_text(text))
        lines.append(f"<li>{''.join(pieces)}</li>")
        before = canvas
    return f"<details><summary>{steps} steps</summary><ol start=0>{''.join(lines)}</ol></details>"


def _text(out: GenerationOutput, ids: Sequence[int]) -> str:
    if out.tokenizer is None:
        return str(list(ids))
    return str(out.tokenizer.decode(list(ids), skip_special_tokens=False))


def _html_text(text: str) -> str:
    """Returns text that turns no direction of writing but its own."""
    return f'<bdi style="white-space:pre-wrap">{escape(text)}</bdi>'
