"""What a command line replaces in an ablation: the model, and the files of problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dllm.eval.ablation.ablation import Ablation, Row
from dllm.eval.tasks import READ
from dllm.registry import nearest


def with_model(ablation: Ablation, model: str | None) -> Ablation:
    """Returns the ablation with another model in every row; published figures no longer apply."""
    if model is None:
        return ablation
    rows = tuple(replace(row, model=model) for row in ablation.rows)
    return replace(ablation, rows=rows, changed=f"the model {model!r}")


def with_files(ablation: Ablation, data: Sequence[str], examples: Path | None) -> Ablation:
    """Returns the ablation with problems from files, each given as `task=FILE`.

    A file without a task is that of the only data set that the rows use.
    """
    used = sorted({row.task.name for row in ablation.rows} & set(READ))
    if (data or examples) and not used:
        raise ValueError("--data, --examples: every task of this ablation makes its own problems")
    if examples is not None and "gsm8k" not in used:
        raise ValueError("--examples: no row has the task gsm8k")
    files = dict(_file(text, used) for text in data)
    rows = tuple(_with_file(row, files, examples) for row in ablation.rows)
    return replace(ablation, rows=rows)


def _file(text: str, used: Sequence[str]) -> tuple[str, Path]:
    task, equals, file = text.partition("=")
    if not equals:
        if len(used) > 1:
            raise ValueError(f"--data {text}: say of which task, such as {used[0]}={text}")
        return used[0], Path(text)
    if task not in used:
        raise ValueError(f"--data {text}: no row has the task {task!r}: {nearest(task, used)}")
    return task, Path(file)


def _with_file(row: Row, files: dict[str, Path], examples: Path | None) -> Row:
    task = row.task
    if task.name in files:
        task = replace(task, data=files[task.name])
    if examples is not None and task.name == "gsm8k":
        task = replace(task, examples=examples)
    return replace(row, task=task)
