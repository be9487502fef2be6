"""From finished rows to a result for each of their problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dllm.eval.run.costs import Share, Shares
from dllm.eval.run.describe import name_of
from dllm.eval.run.record import now
from dllm.eval.run.results import Result
from dllm.eval.run.samples import asked
from dllm.eval.tasks.task import Problem
from dllm.generate import Stream
from dllm.metrics import RowMetrics
from dllm.output import GenerationOutput
from dllm.trace.record import record_of

if TYPE_CHECKING:
    from dllm.eval.run.run import Run


class Answers:
    """Makes results of finished rows; what is the same for all of them is worked out once."""

    def __init__(self, run: Run) -> None:
        self._run, self._described = run, run.describe()
        self._name = name_of(self._described)

    def results(
        self, problems: Mapping[int, Problem], running: Stream, shares: Shares
    ) -> list[Result]:
        """Returns the scored answers to problems by the number of their prompts."""
        out, finished = running.rows(list(problems)), now()
        if out.texts is None:
            raise ValueError(f"model {self._run.model.name!r} has no tokenizer, which tasks need")
        every = zip(problems.items(), out.texts, strict=True)
        return [
            self._result(problem, text, _Row(out, row, shares.of(prompt), finished))
            for row, ((prompt, problem), text) in enumerate(every)
        ]

    def _result(self, problem: Problem, text: str, row: _Row) -> Result:
        said, counted = self._run.task.judgement(asked(problem), text), row.metrics
        spent, metrics = row.share.spent, row.out.metrics
        return Result(
            run=self._name,
            id=problem.id,
            prompt=problem.prompt,
            text=text,
            answer=problem.answer,
            correct=said.correct,
            prompt_tokens=counted.prompt_tokens,
            valid_tokens=counted.valid_tokens,
            raw_tokens=counted.raw_tokens,
            forwards=counted.forwards,
            row_forwards=counted.row_forwards,
            tokens_fed=spent.tokens_fed,
            seconds=spent.seconds,
            finish_reason=counted.finish_reason,
            settings=self._described,
            flops=None if metrics.flops is None else spent.flops,
            details=dict(said.details),
            prefill_seconds=row.share.first,
            latency=row.share.latency,
            rows_fed=spent.rows_fed,
            peak_memory=metrics.peak_memory_bytes,
            extracted=said.extracted,
            finished=row.finished,
            trace=self._trace(problem, row),
        )

    def _trace(self, problem: Problem, row: _Row) -> dict[str, Any] | None:
        if not self._run.keep_trace:
            return None
        from dllm.eval.report.comparison import label_of

        said = f"{problem.id}: {label_of(self._described)}"
        return record_of(row.out, row.place, self._run.model.tokenizer, said).to_json()


@dataclass(frozen=True)
class _Row:
    """A finished row, and what it cost."""

    out: GenerationOutput
    place: int
    share: Share
    finished: str  # UTC

    @property
    def metrics(self) -> RowMetrics:
        return self.out.metrics.rows[self.place]


def rescored(run: Run, problem: Problem, result: Result) -> Result | None:
    """Returns a result that was not scored with its score, None if there is nothing to do."""
    if result.correct is not None or not run.task.scored:
        return None
    said = run.task.judgement(asked(problem), result.text)
    details = dict(said.details)
    return replace(result, correct=said.correct, details=details, extracted=said.extracted)
