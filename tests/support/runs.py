"""Runs of a task over few problems, and a result without one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

import dllm
from dllm.eval.run.results import Result
from dllm.eval.run.run import Run
from dllm.eval.tasks import TASKS
from dllm.settings import resolve
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore


def result(name: str, prompt: str = "", run: str = "r", **changed: Any) -> Result:
    given = Result(run, name, prompt, "", "", True, 9, 5, 5, 2, 2, 1.0, 1.0, "eos", {})
    return Result(**{**asdict(given), **changed})


ARITHMETIC = TASKS["arithmetic"]


FAST: dict[str, Any] = {"scheduler": "threshold:0.9", "max_new_tokens": 32, "block_length": 16}


def run_of(model: Any, num_rows: int = 3, **given: Any) -> Run:
    return Run(model, ARITHMETIC, resolve({}, None, {**FAST, **given}), num_rows)


class Counting:
    """A model that does something before each of its passes."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model, self.passes = model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        self.before(self.passes)
        self.passes += 1
        return self.model.forward(tokens, plan, store)

    def before(self, passes: int) -> None:
        """Nothing."""
