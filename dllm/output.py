"""What a generation returns: texts, token ids, metrics, trace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from dllm.canvas import NEVER, Canvas
from dllm.layout import Layout
from dllm.metrics import Meter, Metrics, RowMetrics
from dllm.trace import Trace


@dataclass(frozen=True)
class GenerationOutput:
    """The rows of a batch, in the order of their prompts."""

    sequences: tuple[tuple[int, ...], ...]  # token ids of each row, prompt included, no padding
    texts: tuple[str, ...] | None  # the answers up to their end token; None without a tokenizer
    metrics: Metrics
    trace: Trace


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C during a generation; `partial` holds what was committed until then."""

    def __init__(self, partial: GenerationOutput) -> None:
        super().__init__("generation interrupted; .partial holds what was committed")
        self.partial = partial


def collect(
    canvas: Canvas, meter: Meter, tokenizer: PreTrainedTokenizerBase | None
) -> GenerationOutput:
    """Returns the output of a canvas, which need not be finished."""
    trace = _trace(canvas)
    is_open = (~canvas.fixed).cpu()
    drafts = canvas.drafts
    forwards = (canvas.step if drafts is None else drafts.passes).tolist()
    accepted = None if drafts is None else drafts.taken.tolist()
    rows, sequences, answers = [], [], []
    row_forwards = canvas.row_forwards.tolist()
    for row, length in enumerate(canvas.length.tolist()):
        ids = trace.tokens[row, :length].tolist()
        prompt = int(trace.prompt_length[row])
        answer = _answer(ids[prompt:], is_open[row, prompt:length].tolist(), canvas.layout)
        rows.append(
            RowMetrics(
                prompt_tokens=prompt,
                valid_tokens=answer.valid_tokens,
                raw_tokens=int((trace.commit_step[row] != NEVER).sum()),
                forwards=forwards[row],
                row_forwards=row_forwards[row],
                finish_reason=answer.finish_reason,
                accepted=() if accepted is None else tuple(accepted[row]),
            )
        )
        sequences.append(tuple(ids))
        answers.append(answer.tokens)
    texts = None
    if tokenizer is not None:
        texts = tuple(_decode(tokenizer, tokens, trace.mask_token_id) for tokens in answers)
    return GenerationOutput(tuple(sequences), texts, meter.finish(tuple(rows)), trace)


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


def _trace(canvas: Canvas) -> Trace:
    width = canvas.layout.num_columns
    return Trace(
        tokens=canvas.tokens[:, :width].cpu(),
        commit_step=canvas.commit_step[:, :width].cpu(),
        confidence=canvas.commit_confidence[:, :width].cpu(),
        prompt_length=canvas.prompt_length.cpu(),
        length=canvas.full_length.cpu(),
        given=canvas.given[:, :width].cpu(),
        block_entry=canvas.block_entry[:, :width].cpu(),
        mask_token_id=canvas.layout.mask_token_id,
        changes=_changes(canvas) if canvas.keep_history else None,
    )


def _changes(canvas: Canvas) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """Returns each row's writes as (forward, column, token)."""
    found: list[list[tuple[int, int, int]]] = [[] for _ in canvas.layout.lengths]
    for written in canvas.history:
        rows, places = (written.before != written.after).cpu().nonzero(as_tuple=True)
        columns, tokens = written.columns[rows, places], written.after[rows, places]
        whose = written.prompts[rows]
        values = torch.stack([whose, written.step[rows], columns, tokens], 1).tolist()
        for prompt, step, column, token in values:
            found[prompt].append((step, column, token))
    return tuple(map(tuple, found))


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int], mask_token_id: int) -> str:
    """Returns the text of an answer; special tokens are left out unless a mask is among them."""
    return str(tokenizer.decode(tokens, skip_special_tokens=mask_token_id not in tokens))
