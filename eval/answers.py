"""From a batch's output to a result for each of its problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dllm.eval.problem import Problem
from dllm.eval.results import Result
from dllm.eval.run_record import now
from dllm.eval.samples import asked
from dllm.output import GenerationOutput
from dllm.trace_record import record_of

if TYPE_CHECKING:
    from dllm.eval.runner import Run


def results_of(run: Run, problems: Sequence[Problem], out: GenerationOutput) -> list[Result]:
    """Returns the scored answers of a batch; what only the batch has is divided by its rows."""
    if out.texts is None:
        raise ValueError(f"model {run.model.name!r} has no tokenizer, which tasks need")
    share, metrics = 1 / len(problems), out.metrics
    described, name, finished = run.describe(), run.name, now()
    traces = _traces(run, problems, out)
    return [
        Result(
            run=name,
            id=problem.id,
            prompt=problem.prompt,
            text=text,
            answer=problem.answer,
            correct=said.correct,
            prompt_tokens=row.prompt_tokens,
            valid_tokens=row.valid_tokens,
            raw_tokens=row.raw_tokens,
            forwards=row.forwards,
            row_forwards=row.row_forwards,
            tokens_fed=metrics.tokens_fed * share,
            seconds=metrics.seconds * share,
            finish_reason=row.finish_reason,
            settings=described,
            flops=None if metrics.flops is None else metrics.flops * share,
            details=dict(said.details),
            prefill_seconds=metrics.prefill_seconds * share,
            latency=metrics.seconds,
            rows_fed=metrics.rows_fed * share,
            peak_memory=metrics.peak_memory_bytes,
            extracted=said.extracted,
            finished=finished,
            trace=trace,
        )
        for problem, text, row, trace in zip(problems, out.texts, metrics.rows, traces, strict=True)
        for said in (run.task.judgement(asked(problem), text),)
    ]


def _traces(
    run: Run, problems: Sequence[Problem], out: GenerationOutput
) -> Sequence[dict[str, Any] | None]:
    if not run.keep_trace:
        return [None] * len(problems)
    from dllm.eval.report import label

    method, tokenizer = label(run), run.model.tokenizer
    labels = [f"{problem.id}: {method}" for problem in problems]
    return [record_of(out, row, tokenizer, said).to_json() for row, said in enumerate(labels)]


def rescored(run: Run, problem: Problem, result: Result) -> Result | None:
    """Returns a result that was not scored with its score, None if there is nothing to do."""
    if result.correct is not None or not run.task.scored:
        return None
    said = run.task.judgement(asked(problem), result.text)
    details = dict(said.details)
    return replace(result, correct=said.correct, details=details, extracted=said.extracted)
