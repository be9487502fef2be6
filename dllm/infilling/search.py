"""The answers of templates: of the lengths that were tried for their holes, the best one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dllm.decoding.passes import Forward
from dllm.infilling.gaps import Laid
from dllm.infilling.score import Full, scores_of
from dllm.output import Filled, GenerationOutput, Tried, decode_tokens
from dllm.prompts import Row
from dllm.state.canvas import Canvas
from dllm.state.window import StepEvent


@dataclass
class Search:
    """Follows the rows of a canvas until each answer has all of its own, and picks the best.

    Until then an answer is shown as the first of its rows.
    """

    rows: Sequence[Row]
    eos_token_ids: tuple[int, ...]
    forward: Forward  # of the model itself, without guidance
    probed: Mapping[int, tuple[Tried, ...]] = field(default_factory=dict)  # of answers, before
    _tokens: dict[int, list[int]] = field(default_factory=dict)  # of rows that are full
    _scores: dict[int, float] = field(default_factory=dict)  # of rows whose answers are full
    _left: dict[int, int] = field(default_factory=dict)  # rows of each answer that are not full

    def __post_init__(self) -> None:
        self._of_answer: dict[int, list[int]] = {}
        for number, row in enumerate(self.rows):
            self._of_answer.setdefault(_laid(row).answer, []).append(number)
        self._left = {answer: len(rows) for answer, rows in self._of_answer.items()}

    @property
    def num_answers(self) -> int:
        """Answers of the call: of each prompt as many as were asked for."""
        return len(self._of_answer)

    def follow(
        self, events: Iterator[StepEvent], canvas: Canvas, tokens_of: Callable[[int], list[int]]
    ) -> Iterator[StepEvent]:
        """Yields the events with answers in place of rows; scores those whose rows are full."""
        for event in events:
            done = []
            for row in event.finished:
                answer = _laid(self.rows[row]).answer
                self._tokens[row] = tokens_of(row)
                self._left[answer] -= 1
                done += [answer] if not self._left[answer] else []
            self._compare(canvas, [answer for answer in done if len(self._of_answer[answer]) > 1])
            answers = tuple(_laid(self.rows[row]).answer for row in event.prompts)
            yield replace(event, prompts=answers, finished=tuple(done))

    def shown(self, answer: int) -> int:
        """Returns the row of an answer: the best one, the shorter of equal ones."""
        rows = self._of_answer[answer]
        return max(rows, key=lambda row: self._scores.get(row, float("-inf")))

    def lead(self, row: int) -> int:
        """Returns the tokens at the end of a row's prompt that are its template's."""
        return _laid(self.rows[row]).lead

    def finish(
        self, out: GenerationOutput, canvas: Canvas, answers: Sequence[int]
    ) -> GenerationOutput:
        """Returns the output of the shown rows of answers as that of their templates.

        `canvas` has all rows. What the other lengths cost is counted as that of variants is.
        """
        assert out.tokenizer is not None  # there is no template without one
        counts = canvas.step if canvas.drafts is None else canvas.drafts.passes
        forwards, row_forwards = counts.tolist(), canvas.row_forwards.tolist()
        rows, texts, holes, tried = [], [], [], []
        for answer, ids, metrics in zip(answers, out.sequences, out.metrics.rows, strict=True):
            each, row = self._of_answer[answer], self.rows[self.shown(answer)]
            start, end = len(row.prompt) - _laid(row).lead, self._end(row, ids)
            rows.append(
                replace(
                    metrics,
                    prompt_tokens=start,
                    forwards=max(forwards[one] for one in each),
                    row_forwards=sum(row_forwards[one] for one in each),
                )
            )
            mask = canvas.layout.mask_token_id
            texts.append(decode_tokens(out.tokenizer, ids[start:end], mask))
            spans = (ids[start:stop] for start, stop in _columns(row, end))
            holes.append(
                tuple(Filled(decode_tokens(out.tokenizer, one, mask), one) for one in spans)
            )
            tried.append(self.probed.get(answer) or tuple(self._tried(answer)))
        return replace(
            out,
            texts=tuple(texts),
            metrics=replace(out.metrics, rows=tuple(rows)),
            holes=tuple(holes),
            tried=tuple(tried),
        )

    def _tried(self, answer: int) -> Iterator[Tried]:
        """Yields the lengths of an answer with their scores, () until they are known."""
        for row in self._of_answer[answer]:
            if row in self._scores:
                yield Tried(_laid(self.rows[row]).lengths, self._scores[row])

    def _end(self, row: Row, ids: Sequence[int]) -> int:
        """Returns the column of the end token that ends a row's last hole, else its length."""
        last = len(row.prompt) + _laid(row).first_end
        ends = (column for column in range(last, len(ids)) if ids[column] in self.eos_token_ids)
        return next(ends, len(ids))

    def _compare(self, canvas: Canvas, answers: Sequence[int]) -> None:
        """Scores the rows of answers, as many at a time as the canvas has rows."""
        rows = [row for answer in answers for row in self._of_answer[answer]]
        full = [self._full(row) for row in rows]
        for row, score in zip(rows, scores_of(full, canvas, self.forward), strict=True):
            self._scores[row] = score

    def _full(self, number: int) -> Full:
        """Returns a row whose tokens are all there, and the columns that its score is of."""
        row, ids = self.rows[number], self._tokens[number]
        spans = _columns(row, self._end(row, ids) + 1)
        columns = [column for start, stop in spans for column in range(start, stop)]
        return Full(ids, len(row.prompt), columns)


def _columns(row: Row, end: int) -> Iterator[tuple[int, int]]:
    """Yields the first column of each hole of a row, and the one behind it, at most `end`."""
    for gap in _laid(row).gaps:
        start = len(row.prompt) + gap.start
        yield start, max(min(len(row.prompt) + gap.stop, end), start)


def _laid(row: Row) -> Laid:
    assert row.laid is not None
    return row.laid
