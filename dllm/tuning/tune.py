"""A search from its question to its recipe, in a folder from which it goes on after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dllm
from dllm import schedulers
from dllm.compatible import check
from dllm.eval.run import stable
from dllm.eval.run.record import checkpoint_digest
from dllm.eval.run.results import RefusedError, Result
from dllm.eval.run.run import Run
from dllm.eval.tasks.task import Problem, Task
from dllm.models.model import DenoisingModel
from dllm.reading import parse_json
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings, resolve
from dllm.tuning.arm import Arm, Cost, front
from dllm.tuning.confirm import Confirmed, confirm
from dllm.tuning.floor import Floor
from dllm.tuning.problems import FEWEST, Parts, Sizes, apart, digest_of
from dllm.tuning.race import Race, Rules
from dllm.tuning.space import Choice, Space

STATE = "tune.json"  # what was asked, in the folder
_FRONT = 3  # settings of the front that are measured on unseen problems too


@dataclass(frozen=True)
class Question:
    """What is looked for: of which model and task, at which cost and floor, with how much work."""

    model: DenoisingModel
    task: Task
    fixed: Mapping[str, Any]  # settings that are not searched
    cost: Cost
    floor: Floor
    budget: float | None  # forwards of a row; None: what `minutes` are worth
    minutes: float
    sizes: Sizes = field(default_factory=Sizes)
    batch_size: int = 32
    seed: int = 0

    @cached_property
    def settings(self) -> Settings:
        """The settings over which choices are laid."""
        return resolve(self.model.defaults, None, self.fixed)

    @cached_property
    def space(self) -> Space:
        """What may be varied."""
        slots = self.settings.max_new_tokens
        block = self.settings.block_length or self.model.spec.block_length or DEFAULT_BLOCK_LENGTH
        names = schedulers.registry.names()
        return Space.of(self.cost, names, slots, min(block, slots), self.batch_size)

    @property
    def rules(self) -> Rules:
        """What the race goes by."""
        return Rules(self.cost, self.floor, self.seed)

    def described(self, parts: Parts) -> dict[str, Any]:
        """Returns all that a decision depends on, as JSON has it."""
        return {
            "version": dllm.__version__,
            "model": self.model.name,
            "checkpoint": checkpoint_digest(self.model),
            "task": self.task.name,
            "seed": self.seed,
            "fixed": stable(dict(self.fixed)),
            "cost": self.cost,
            "floor": str(self.floor),
            "problems": [digest_of(one) for one in (parts.race, parts.confirm, parts.unseen)],
            "budget": self.budget,
            "minutes": self.minutes if self.budget is None else None,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    race: Race
    confirmed: Confirmed
    unseen: Mapping[Choice, Arm]  # measured on unseen problems: stepwise, the recipe, the front
    parts: Parts
    budget: float

    @property
    def spent(self) -> float:
        """Forwards of a row, on all problems."""
        unseen = sum(arm.work * arm.count for arm in self.unseen.values())
        return self.race.spent + self.confirmed.spent + unseen


@dataclass
class Search:
    """A question that is answered in a folder; `look` is told of each arm before it is measured."""

    question: Question
    folder: Path
    look: Callable[[Race, Choice, float], object] = lambda race, choice, budget: None
    _budget: float = field(default=0.0, init=False)

    def run(self) -> Found:
        """Returns the setting that is named with all that speaks for it.

        Raises ValueError for a budget too small to say anything, and for a folder in which
        something else was asked.
        """
        asked = self.question
        parts = apart(asked.task, asked.sizes, asked.seed)
        state = self._state(asked.described(parts))
        race = Race(asked.space, asked.rules, parts.race, self._measure)
        self._race = race
        stepwise = race.begin()
        self._budget = self._worth(state, stepwise)
        left = self._budget - self._kept_back(stepwise.work, len(parts.unseen))
        # Half, or all but what a confirmation takes of one token a forward and of finalists.
        race.run(max(left / 2, left - 2 * stepwise.work * len(parts.confirm)))
        confirmed = confirm(race, parts.confirm, left - race.spent)
        unseen = self._unseen(race, confirmed, parts)
        return Found(race, confirmed, unseen, parts, self._budget)

    def path_of(self, choice: Choice) -> Path:
        """Returns the results file of a choice."""
        return self.folder / "runs" / f"{self.run_of(choice).name}-{choice.batch_size}.jsonl"

    def run_of(self, choice: Choice) -> Run:
        """Returns the run of a choice."""
        asked = self.question
        settings = resolve(asked.model.defaults, asked.settings, choice.given)
        return Run(asked.model, asked.task, settings, choice.batch_size)

    def _measure(self, choice: Choice, problems: Sequence[Problem]) -> Iterator[Result]:
        self.look(self._race, choice, self._budget)
        _check(self.question.model, self.run_of(choice).settings)
        path = self.path_of(choice)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield from self.run_of(choice).results(problems, path)

    def _state(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the folder says, which is begun if it is new."""
        path = self.folder / STATE
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            return {"asked": dict(asked)}
        state = parse_json(path.read_bytes(), path)
        known = state.get("asked") if isinstance(state, dict) else None
        if not isinstance(known, dict):
            raise ValueError(f"{path} is not the record of a search: give another --output")
        other = [key for key in asked if known.get(key) != asked[key]]
        if other:
            key = other[0]
            raise ValueError(
                f"{self.folder} holds a search with another {key} ({known.get(key)!r}, now "
                f"{asked[key]!r}): start anew with --fresh, or give another --output"
            )
        return state

    def _worth(self, state: dict[str, Any], stepwise: Arm) -> float:
        """Returns the budget; minutes become forwards once, and stay so."""
        if "budget" not in state:
            seconds = sum(one.seconds for one in stepwise.results)
            forwards = stepwise.work * stepwise.count
            rate = forwards / seconds if seconds else 0.0
            budget = self.question.budget
            state["budget"] = round(rate * 60 * self.question.minutes) if budget is None else budget
            text = json.dumps(state, indent=1)
            fresh = self.folder / f"{STATE}.new"  # a kill leaves none of it, or all
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self.folder / STATE)
        return float(state["budget"])

    def _kept_back(self, work: float, unseen: int) -> float:
        """Returns what the unseen problems take of the budget, of stepwise and the recipe.

        Raises ValueError for a budget in which not even one setting could be compared.
        """
        asked, kept = self.question, 2 * work * unseen
        needed = round(kept + 4 * work * FEWEST + 0.5)
        if self._budget < needed:
            given = f"--budget {asked.budget:g}" if asked.budget is not None else ""
            given = given or f"--minutes {asked.minutes:g}, here {self._budget:.0f} forwards,"
            raise ValueError(
                f"{given} is too small to say anything: one setting beside one token a forward, "
                f"twice on {FEWEST} problems and once on {unseen} unseen ones, takes up to "
                f"{needed} forwards; give at least so many, or fewer --unseen"
            )
        return kept

    def _unseen(self, race: Race, confirmed: Confirmed, parts: Parts) -> dict[Choice, Arm]:
        """Measures stepwise, the recipe, and the rest of the front as far as the budget reaches."""
        chosen, spent = race.arms[confirmed.chosen], race.spent + confirmed.spent
        found: dict[Choice, Arm] = {}
        tried = [arm for arm in race.racing if 2 * arm.count >= chosen.count]
        first = [race.stepwise.choice, chosen.choice]
        for choice in dict.fromkeys([*first, *(arm.choice for arm in front(tried)[:_FRONT])]):
            known = race.arms[choice]
            if choice not in first and spent + len(parts.unseen) * known.work > self._budget:
                continue
            results = {one.id: one for one in self._measure(choice, parts.unseen)}
            answers = tuple(results[one.id] for one in parts.unseen)
            found[choice] = Arm(choice, answers, known.cost_name)
            spent += found[choice].work * found[choice].count
        return found


def _check(model: DenoisingModel, settings: Settings) -> None:
    """Raises RefusedError for parts that do not go together."""
    try:
        check(model, settings)
    except ValueError as error:
        raise RefusedError(str(error)) from error
