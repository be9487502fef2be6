"""Searches on the embedded model: refusals, a kill, and the same recipe after it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.eval.tasks import find_task
from dllm.eval.tasks.task import Task, TaskOptions
from dllm.reading import parse_json
from dllm.recipes import read_recipe
from dllm.tuning.floor import Floor
from dllm.tuning.problems import Sizes, apart
from dllm.tuning.tune import STATE, Question, Search
from dllm.tuning.verdict import recipe_of
from tests.support.marks import SLOW

FIELDS = {"passes": "forwards", "flops": "flops", "seconds": "seconds"}  # of a result

ASKED = ["tune", "tiny", "--budget", "9000", "-n", "32", "--set", "block_length=16"]
ASKED += ["--limit", "64", "--confirm", "64", "--unseen", "32"]
SMALL = Sizes(32, 32, 32)


def question(**changed: Any) -> Question:
    given: dict[str, Any] = {
        "model": dllm.load("tiny"),
        "task": find_task("arithmetic", TaskOptions()),
        "fixed": {"max_new_tokens": 8},
        "cost": "forwards",
        "floor": Floor.parse("accuracy >= 0.98 * stepwise"),
        "budget": 100.0,
        "minutes": 1.0,
        "sizes": SMALL,
    }
    return Question(**{**given, **changed})


def data_set(folder: Path, count: int) -> Task:
    rows = ({"question": f"{n} and {n}?", "answer": f"#### {2 * n}"} for n in range(count))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return find_task("gsm8k", TaskOptions(path, shots=0))


def test_parts_share_no_prompt() -> None:
    parts = apart(find_task("arithmetic", TaskOptions()), Sizes(100, 150, 120), 3)
    prompts = [{one.prompt for one in part} for part in (parts.race, parts.confirm, parts.unseen)]
    assert list(map(len, prompts)) == [100, 150, 120]
    assert len(set.union(*prompts)) == 370


def test_seeds_draw_other_problems() -> None:
    task = find_task("arithmetic", TaskOptions())
    parts = [apart(task, Sizes(200, 200, 200), seed) for seed in range(3)]
    for kind in ("race", "confirm", "unseen"):
        prompts = [{one.prompt for one in getattr(one, kind)} for one in parts]
        assert len(set.union(*prompts)) > 0.97 * 600


def test_a_data_set_is_parted_by_a_hash_of_the_prompt(tmp_path: Path) -> None:
    task = data_set(tmp_path, 300)
    parts = apart(task, Sizes(), 0)
    prompts = [{one.prompt for one in part} for part in (parts.race, parts.confirm, parts.unseen)]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 300
    assert min(map(len, prompts)) > 60
    assert apart(task, Sizes(), 0) == parts
    assert apart(task, Sizes(), 1) != parts


def test_a_data_set_too_small_for_three_parts_is_refused(tmp_path: Path) -> None:
    task = data_set(tmp_path, 60)
    with pytest.raises(ValueError, match=r"has only \d+ problems for a part.*needs 32 of each"):
        apart(task, Sizes(), 0)


def test_a_budget_too_small_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--budget 100 is too small.*takes up to \d+ forwards"):
        Search(question(), tmp_path).run()


def test_a_folder_of_another_question_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too small"):
        Search(question(), tmp_path).run()
    floor = Floor.parse("accuracy >= 0.5")
    with pytest.raises(ValueError, match=r"another floor.*--fresh"):
        Search(question(floor=floor), tmp_path).run()


def test_a_folder_of_another_seed_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too small"):
        Search(question(), tmp_path).run()
    with pytest.raises(ValueError, match=r"another seed \(0, now 1\).*--fresh"):
        Search(question(seed=1), tmp_path).run()


def test_minutes_become_forwards_once(tmp_path: Path) -> None:
    asked = question(budget=None, minutes=1e-3)
    said = []
    for _ in range(2):  # the second time another clock would come to another number
        with pytest.raises(ValueError, match=r"--minutes 0.001, here \d+ forwards") as caught:
            Search(asked, tmp_path).run()
        said.append(str(caught.value))
    assert said[0] == said[1]
    budget = parse_json((tmp_path / STATE).read_bytes(), tmp_path)["budget"]
    assert f"here {budget} forwards" in said[0]
    with pytest.raises(ValueError, match="another minutes"):
        Search(question(budget=None, minutes=2e-3), tmp_path).run()


def test_a_checkpoint_that_changed_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too small"):
        Search(question(), tmp_path).run()
    model = dllm.load("tiny")
    model.network.embedding.weight.data[0, 0] += 1.0
    with pytest.raises(ValueError, match=r"another checkpoint.*--fresh"):
        Search(question(model=model), tmp_path).run()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--floor", "fast"], "--floor 'fast' cannot be read"),
        (["--cost", "euros"], "--cost 'euros' is unknown"),
        (["--unseen", "3"], "unseen=3"),
    ],
)
def test_bad_options_are_refused(given: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*ASKED, *given, "--output", str(tmp_path / "t")])
    assert done.exit_code != 0
    assert message in str(done.exception)


@pytest.mark.parametrize(
    "cost", ["passes", *(pytest.param(cost, marks=SLOW) for cost in ("flops", "seconds"))]
)
def test_a_search_for_each_cost(cost: str, tmp_path: Path) -> None:
    asked = question(cost=cost, budget=2_500.0)
    found = Search(asked, tmp_path).run()
    recipe = recipe_of(asked, found)
    assert (recipe.cost, recipe.tuned["budget"]) == (cost, 2_500)
    assert recipe.tuned["spent"] <= 2_500
    result = next(iter(found.unseen.values())).results[0]
    assert found.race.stepwise.cost_of(result) == getattr(result, FIELDS[cost])
    assert ("batch_size" in recipe.settings) is (cost == "seconds")
    assert read_recipe(parse_json(recipe.to_json(), "it")) == recipe


@pytest.mark.slow
def test_a_search_that_was_killed_decides_the_same(tmp_path: Path) -> None:
    def begin(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dllm", *ASKED, "--output", str(folder)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert begin(whole).wait() == 0
    for files in (3, 6):
        one = begin(killed)
        while len(list(killed.glob("runs/*.jsonl"))) < files and one.poll() is None:
            time.sleep(0.02)
        one.send_signal(signal.SIGKILL)
        assert one.wait() == -signal.SIGKILL
        assert not (killed / "recipe.json").exists()
    assert begin(killed).wait() == 0
    assert (killed / "recipe.json").read_text() == (whole / "recipe.json").read_text()
    assert (whole / "report.html").exists()
    recipe = read_recipe(whole / "recipe.json")
    assert recipe.measured["problems"] == 32
    assert recipe.tuned["spent"] <= 9000
