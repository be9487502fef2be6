"""Searches on the embedded model: refusals, a kill, and the same recipe after it."""

from __future__ import annotations

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
from dllm.eval.tasks.task import TaskOptions
from dllm.recipes import read_recipe
from dllm.tuning.floor import Floor
from dllm.tuning.problems import apart
from dllm.tuning.tune import Question, Search

ASKED = [
    "tune",
    "tiny",
    "--budget",
    "4500",
    "--unseen",
    "32",
    "-n",
    "32",
    "--set",
    "block_length=16",
]


def question(**changed: Any) -> Question:
    given: dict[str, Any] = {
        "model": dllm.load("tiny"),
        "task": find_task("arithmetic", TaskOptions()),
        "fixed": {"max_new_tokens": 16},
        "cost": "forwards",
        "floor": Floor.parse("accuracy >= 0.98 * stepwise"),
        "budget": 100.0,
        "minutes": 1.0,
        "unseen": 32,
    }
    return Question(**{**given, **changed})


def test_parts_share_no_prompt() -> None:
    parts = apart(find_task("arithmetic", TaskOptions()), 100, 100, 3)
    assert not {one.prompt for one in parts.tuning} & {one.prompt for one in parts.unseen}
    assert (len(parts.tuning), len(parts.unseen)) == (100, 100)


def test_a_budget_too_small_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--budget 100 is too small.*takes up to \d+ forwards"):
        Search(question(), tmp_path).run()


def test_a_folder_of_another_question_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too small"):
        Search(question(), tmp_path).run()
    floor = Floor.parse("accuracy >= 0.5")
    with pytest.raises(ValueError, match=r"another floor.*--fresh"):
        Search(question(floor=floor), tmp_path).run()


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
    assert recipe.tuned["spent"] <= 4500
