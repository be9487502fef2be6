"""A search from its question to its recipe, in a folder from which it goes on after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dllm
from dllm.eval.run import stable
from dllm.eval.run.record import checkpoint_digest
from dllm.eval.run.results import Result
from dllm.eval.run.run import Run
from dllm.eval.tasks.task import Problem, Task
from dllm.models.digest import weights_digest
from dllm.models.model import DenoisingModel
from dllm.reading import parse_json
from dllm.recipes.recipe import FORMAT, Recipe
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings, resolve
from dllm.tuning.arm import Arm, Cost, front
from dllm.tuning.floor import Floor
from dllm.tuning.problems import Parts, apart, digest_of
from dllm.tuning.race import STAGES, Race, Rules
from dllm.tuning.space import Choice, Space
from dllm.tuning.verdict import measured, not_tried

STATE = "tune.json"  # what was asked, in the folder


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
    tuning: int = 512  # problems that decide
    unseen: int = 300  # problems that what is found is measured on
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
        return Space.of(self.cost, slots, min(block, slots), self.batch_size)

    @property
    def rules(self) -> Rules:
        """What the race goes by."""
        return Rules(self.cost, self.floor, self.unseen, self.seed)

    def described(self, parts: Parts) -> dict[str, Any]:
        """Returns all that a decision depends on, as JSON has it."""
        return {
            "version": dllm.__version__,
            "model": self.model.name,
            "checkpoint": checkpoint_digest(self.model),
            "task": self.task.name,
            "problems": [digest_of(parts.tuning), digest_of(parts.unseen)],
            "fixed": stable(dict(self.fixed)),
            "cost": self.cost,
            "floor": str(self.floor),
            "budget": self.budget,
            "minutes": self.minutes if self.budget is None else None,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    recipe: Recipe
    race: Race
    unseen: Mapping[Choice, Arm]  # measured on unseen problems: stepwise, the recipe, the front
    parts: Parts
    budget: float


@dataclass
class Search:
    """A question that is answered in a folder; `look` is told of each arm before it is measured."""

    question: Question
    folder: Path
    look: Callable[[Race, Choice, float], object] = lambda race, choice, budget: None
    _budget: float = field(default=0.0, init=False)

    def run(self) -> Found:
        """Returns the recipe with all that speaks for it.

        Raises ValueError for a budget too small to say anything, and for a folder in which
        something else was asked.
        """
        asked = self.question
        parts = apart(asked.task, asked.tuning, asked.unseen, asked.seed)
        state = self._state(asked.described(parts))
        race = Race(asked.space, asked.rules, parts.tuning, self._measure)
        self._race = race
        stepwise = race.begin()
        self._budget = self._worth(state, stepwise)
        self._check(stepwise.work)
        race.run(self._budget)
        unseen = self._unseen(race, parts)
        return Found(self._recipe(race, unseen, parts), race, unseen, parts, self._budget)

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
            seconds = sum(one.seconds for one in stepwise.results.values())
            forwards = stepwise.work * stepwise.count
            rate = forwards / seconds if seconds else 0.0
            budget = self.question.budget
            state["budget"] = round(rate * 60 * self.question.minutes) if budget is None else budget
            text = json.dumps(state, indent=1)
            fresh = self.folder / f"{STATE}.new"  # a kill leaves none of it, or all
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self.folder / STATE)
        return float(state["budget"])

    def _check(self, work: float) -> None:
        """Raises ValueError for a budget in which not even one setting could be compared."""
        asked = self.question
        needed = round(2 * work * (STAGES[0] + asked.unseen) + 0.5)
        if self._budget < needed:
            given = f"--budget {asked.budget:g}"
            if asked.budget is None:
                given = f"--minutes {asked.minutes:g}, here {self._budget:.0f} forwards,"
            raise ValueError(
                f"{given} is too small to say anything: one setting beside one token a forward, on "
                f"{STAGES[0]} problems and {asked.unseen} unseen ones, takes up to {needed} "
                "forwards; give at least so many, or fewer --unseen"
            )

    def _unseen(self, race: Race, parts: Parts) -> dict[Choice, Arm]:
        """Measures stepwise, the recipe, and the rest of the front as far as the budget reaches."""
        chosen, spent = race.chosen(), race.spent
        found: dict[Choice, Arm] = {}
        tried = [arm for arm in race.racing if 2 * arm.count >= chosen.count]
        for arm in dict.fromkeys(one.choice for one in [race.stepwise, chosen, *front(tried)]):
            known = race.arms[arm]
            if len(found) > 1 and spent + len(parts.unseen) * known.work > self._budget:
                continue
            results = {one.id: one for one in self._measure(arm, parts.unseen)}
            found[arm] = Arm(
                arm, {one.id: results[one.id] for one in parts.unseen}, known.cost_name
            )
            spent += found[arm].work * found[arm].count
        return found

    def _recipe(self, race: Race, unseen: Mapping[Choice, Arm], parts: Parts) -> Recipe:
        asked, chosen = self.question, race.chosen()
        batch = {"batch_size": chosen.choice.batch_size} if asked.cost == "seconds" else {}
        slots = {"max_new_tokens": asked.settings.max_new_tokens}
        pair = unseen[chosen.choice], unseen[race.space.stepwise]
        return Recipe(
            format=FORMAT,
            version=dllm.__version__,
            model=asked.model.name,
            weights=weights_digest(asked.model),
            task=asked.task.name,
            settings={**slots, **asked.fixed, **chosen.choice.given, **batch},
            cost=asked.cost,
            floor=str(asked.floor),
            measured={**measured(*pair, asked.floor), "problems_digest": digest_of(parts.unseen)},
            tuned={
                "problems": chosen.count,
                "problems_digest": digest_of(parts.tuning),
                "source": parts.source,
                "budget": self._budget,
                "spent": race.spent,
                "settings_tried": len(race.arms),
                "accuracy": chosen.accuracy,
                "cost": chosen.cost,
            },
            not_tried=tuple(not_tried(race)),
        )
