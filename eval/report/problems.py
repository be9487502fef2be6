"""The problems whose answers a report shows one by one, as JSON-ready values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dllm.eval.ablation.bench import Trial
from dllm.eval.report.lines import Line
from dllm.eval.run.results import Result

LONGEST = 20_000  # characters of a text; a model may fill a page


def problems_of(lines: Sequence[Line], most: int) -> list[dict[str, Any]]:
    """Returns at most `most` problems of each task with the answer of each run.

    Those on which the runs disagree most come first, then the others in the task's order.
    """
    tasks: dict[str, list[Line]] = {}
    for line in lines:
        tasks.setdefault(line.outcome.trial.row.task.text, []).append(line)
    return [shown for task, members in tasks.items() for shown in _of_task(task, members, most)]


def _of_task(task: str, lines: Sequence[Line], most: int) -> list[dict[str, Any]]:
    trial: Trial = lines[0].outcome.trial
    answers: dict[str, list[tuple[Line, Result]]] = {}
    for line in lines:
        for result in line.outcome.results:
            answers.setdefault(result.id, []).append((line, result))
    answered = [problem for problem in trial.problems if problem.id in answers]
    answered.sort(key=lambda problem: -_disagreement([r for _, r in answers[problem.id]]))
    return [
        {
            "task": task,
            "id": problem.id,
            "prompt": _cut(problem.prompt),
            "expected": _cut(problem.answer),
            "answers": [_answer(line, result) for line, result in answers[problem.id]],
        }
        for problem in answered[:most]
    ]


def _disagreement(results: Sequence[Result]) -> int:
    right = sum(result.correct is True for result in results)
    wrong = sum(result.correct is False for result in results)
    return min(right, wrong)


def _answer(line: Line, result: Result) -> dict[str, Any]:
    return {
        "number": line.number,
        "run": line.name,
        "text": _cut(result.text),
        "correct": result.correct,
        "forwards": result.forwards,
        "tokens": result.valid_tokens,
        "finish": result.finish_reason,
        "trace": result.trace,
    }


def _cut(text: str) -> str:
    more = len(text) - LONGEST
    return text if more <= 0 else f"{text[:LONGEST]}\n[{more:,} more characters]"
