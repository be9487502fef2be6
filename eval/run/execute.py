"""Decodes problems in one call, each result with its share of the cost as its row is finished."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from dllm.compatible import check
from dllm.decoding.languages.toll import Toll
from dllm.eval.run.describe import Setup, label_of, name_of, seed_of
from dllm.eval.run.record import now
from dllm.eval.run.results import RefusedError, Result, asked
from dllm.eval.tasks.task import Problem, Task
from dllm.generate import Stream
from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.output import GenerationOutput
from dllm.settings import Settings
from dllm.state.window import StepEvent
from dllm.trace import record_of

# Figures that a row's metrics and its result have alike.
_COUNTED = ("prompt_tokens", "valid_tokens", "raw_tokens", "forwards", "row_forwards")


def results(run: Setup, problems: Sequence[Problem]) -> Iterator[list[Result]]:
    """Yields the results of the rows that one step finished, `run.num_rows` rows at a time."""
    answers, left = Answers(run), dict(enumerate(problems))
    seeds = [seed_of(run.settings.seed, problem.id) for problem in problems]
    prompts: list[Any] = [problem.given for problem in problems]
    settings = replace(run.settings, seed=seeds)
    with _refused(problems):
        if run.holds:
            settings = _held(run.model, settings, problems)
        if run.task.laid_out:
            templates = [one.template for one in problems if one.template is not None]  # all have
            settings = replace(settings, template=templates)
        toll = None if settings.constraint is None else Toll()
        running = Stream(run.model, prompts, settings, toll=toll, bound=run.num_rows)
    shares = Shares(running.meter, toll)
    for event in _refusing(shares.watch(running), problems):
        if event.finished:
            ended = {prompt: left.pop(prompt) for prompt in event.finished}
            yield answers.results(ended, running, shares)
    if left:  # they had nothing to fill, so no step finished them
        yield answers.results(left, running, shares)


def _held(model: DenoisingModel, settings: Settings, problems: Sequence[Problem]) -> Settings:
    """Returns the settings with the constraint of each problem; raises ValueError by one of them.

    An error that showed all of them would be as long as their schemas.
    """
    constraints = [problem.constraint for problem in problems]
    one = next((held for held in constraints if held is not None), None)
    check(model, replace(settings, constraint=one))
    return replace(settings, constraint=constraints)


def _refusing(events: Iterator[StepEvent], problems: Sequence[Problem]) -> Iterator[StepEvent]:
    with _refused(problems):
        yield from events


@contextmanager
def _refused(problems: Sequence[Problem]) -> Iterator[None]:
    """Turns the errors by which a generation says why it cannot be into refusals.

    One about a prompt, which it counts, names the problem.
    """
    try:
        yield
    except ValueError as error:
        found = re.match(r"prompt (\d+)\b", str(error))
        named = "" if found is None else f"problem {problems[int(found[1])].id!r}: "
        raise RefusedError(f"{named}{error}") from error


class Answers:
    """Makes results of finished rows; what is the same for all of them is worked out once."""

    def __init__(self, run: Setup) -> None:
        self._run, self._described = run, run.describe()
        self._name = name_of(self._described)

    def results(
        self, problems: Mapping[int, Problem], running: Stream, shares: Shares
    ) -> list[Result]:
        """Returns the scored answers to problems by the number of their prompts."""
        out, finished = running.rows(list(problems)), now()
        results = []
        for row, (prompt, problem) in enumerate(problems.items()):
            result = self._result(problem, out, row, shares.of(prompt))
            results.append(scored(self._run.task, problem, replace(result, finished=finished)))
        return results

    def _result(self, problem: Problem, out: GenerationOutput, row: int, share: Share) -> Result:
        """Returns the result of a row, not scored yet."""
        if out.texts is None:
            raise ValueError(f"model {self._run.model.name!r} has no tokenizer, which tasks need")
        counted, spent, metrics = out.metrics.rows[row], share.spent, out.metrics
        trace = None
        if self._run.keep_trace:
            title = f"{problem.id}: {label_of(self._described)}"
            trace = record_of(out, row, self._run.model.tokenizer, title).to_json()
        return Result(
            run=self._name,
            id=problem.id,
            problem=asked(problem).id,
            prompt=problem.prompt,
            text=out.texts[row],
            answer=problem.answer,
            correct=None,
            **{name: getattr(counted, name) for name in _COUNTED},
            tokens_fed=spent.tokens_fed,
            seconds=spent.seconds,
            settings=self._described,
            finish_reason=counted.finish_reason,
            flops=None if metrics.flops is None else spent.flops,
            prefill_seconds=share.first,
            latency=share.latency,
            rows_fed=spent.rows_fed,
            peak_memory=metrics.peak_memory_bytes,
            trace=trace,
            steps=spent.steps,
            forced=None if share.lost is None else counted.forced,
            nats_lost=share.lost,
            constraint_seconds=spent.constraint if share.tolled else None,
            tokens_needed=None if metrics.tokens_needed is None else spent.tokens_needed,
        )


def scored(task: Task, problem: Problem, result: Result) -> Result:
    """Returns a result with its score, if the task scores."""
    found = task.judgement(asked(problem), result.text)
    details = dict(found.details)
    return replace(result, correct=found.correct, details=details, extracted=found.extracted)


@dataclass(frozen=True)
class Spent:
    """Time and work of a batch, or of a row of it."""

    seconds: float = 0.0
    rows_fed: float = 0.0
    tokens_fed: float = 0.0
    flops: float = 0.0
    steps: float = 0.0  # of the batch
    constraint: float = 0.0  # seconds of those above that what answers must be has taken
    tokens_needed: float = 0.0  # of those fed, what was no padding

    def plus(self, other: Spent, times: float = 1.0) -> Spent:
        """Returns the sum of this and a multiple of another."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Spent(*(ours + times * theirs for ours, theirs in pairs))


@dataclass(frozen=True)
class Share:
    """The cost of one answer."""

    spent: Spent  # shares of its steps
    first: float  # seconds of them that its first step took
    latency: float  # seconds from the beginning of its first step to the end of its last
    lost: float | None = None  # nats; None: nothing says what the answer must be
    tolled: bool = False  # whether it is known what a constraint has taken


class Shares:
    """Divides each step evenly among the rows that were under way in it.

    So the shares of all answers add up to what was spent, places that nobody was left for
    included. The clock stands still between two steps, while answers are judged and written.
    """

    def __init__(self, meter: Meter, toll: Toll | None = None) -> None:
        self._meter, self._toll = meter, toll
        self._total = Spent()
        self._each = Spent()  # of a row that is under way from the first step on
        self._begun: dict[int, Share] = {}  # counters when a row began
        self._ended: set[int] = set()

    def watch(self, events: Iterable[StepEvent]) -> Iterator[StepEvent]:
        """Yields the events of a generation, each when its step has been divided."""
        steps, before = iter(events), self._meter.probing  # of the first step
        while True:
            start = perf_counter()
            event = next(steps, None)
            if event is None:
                return
            self._divide(event, perf_counter() - start + before)
            before = 0.0
            yield event

    def of(self, prompt: int) -> Share:
        """Returns the cost of a prompt's row; right after the step that finished it."""
        begun, toll = self._begun.get(prompt), self._toll
        lost = None if toll is None else toll.lost(prompt)
        tolled = toll is not None and toll.seconds is not None
        if begun is None:  # it had nothing to fill
            return Share(Spent(), 0.0, 0.0, lost, tolled)
        spent = self._each.plus(begun.spent, -1)
        return Share(spent, begun.first, self._total.seconds - begun.latency, lost, tolled)

    def _divide(self, event: StepEvent, seconds: float) -> None:
        meter = self._meter
        seconds, steps = seconds + self._total.seconds, self._total.steps + 1
        held = 0.0 if self._toll is None else self._toll.seconds or 0.0
        fed = (meter.rows_fed, meter.tokens_fed, meter.flops)
        total = Spent(seconds, *fed, steps, held, meter.tokens_needed or 0)
        step = total.plus(self._total, -1)
        # Of a template with lengths to choose from an answer has several rows, like all others.
        seated = dict.fromkeys(event.prompts)
        running = [prompt for prompt in seated if prompt not in self._ended]
        for prompt in running:
            if prompt not in self._begun:
                first = step.seconds / len(running)
                self._begun[prompt] = Share(self._each, first, self._total.seconds)
        self._total, self._each = total, self._each.plus(step, 1 / len(running))
        self._ended.update(event.finished)
