"""Decodes problems in one call and gives each result in the step that finished its row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dllm.eval.run.answers import Answers
from dllm.eval.run.costs import Shares
from dllm.eval.run.describe import seed_of
from dllm.eval.run.results import Result
from dllm.eval.run.run import RefusedError, Run
from dllm.eval.tasks.task import Problem
from dllm.generate import Stream, stream
from dllm.state.event import StepEvent


def results(run: Run, problems: Sequence[Problem]) -> Iterator[list[Result]]:
    """Yields the results of the rows that one step finished, `run.num_rows` rows at a time."""
    answers, left = Answers(run), dict(enumerate(problems))
    with _refused():
        running = _stream(run, problems)
    shares = Shares(running.meter)
    for event in _refusing(shares.watch(running)):
        if event.finished:
            ended = {prompt: left.pop(prompt) for prompt in event.finished}
            yield answers.results(ended, running, shares)
    if left:  # they had nothing to fill, so no step finished them
        yield answers.results(left, running, shares)


def _stream(run: Run, problems: Sequence[Problem]) -> Stream:
    seeds = [seed_of(run.settings.seed, problem.id) for problem in problems]
    prompts: list[Any] = [problem.given for problem in problems]
    settings = replace(run.settings, seed=seeds, batch_size=run.num_rows)
    return stream(run.model, prompts, settings)


def _refusing(events: Iterator[StepEvent]) -> Iterator[StepEvent]:
    with _refused():
        yield from events


@contextmanager
def _refused() -> Iterator[None]:
    """Turns the errors by which a generation says why it cannot be into refusals."""
    try:
        yield
    except ValueError as error:
        raise RefusedError(str(error)) from error
