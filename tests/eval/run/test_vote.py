"""Votes over block lengths: whose answer wins, what it cost, and runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.eval.run.results import Result, read_results
from dllm.eval.run.run import Run
from dllm.eval.run.summary import summarise
from dllm.eval.run.vote import majority, read_vote, voted
from dllm.eval.tasks import TASKS, find_task
from dllm.eval.tasks.task import Problem, TaskOptions
from dllm.settings import resolve
from tests.support.runs import result

LISTS = TASKS["lists"]


@pytest.mark.parametrize(
    ("stated", "place", "tied"),
    [
        (["7", "8", "8"], 1, False),
        (["7", "8", "8", "7", "9"], 0, True),  # the first of equal ones, in the vote's order
        ([None, None, "9"], 2, False),  # who has no answer does not vote
        ([None, "8", "7", None], 1, True),
        ([None, None], 0, False),
        (["5"], 0, False),
    ],
)
def test_the_most_frequent_answer_wins(stated: list[str | None], place: int, tied: bool) -> None:
    assert majority(stated) == (place, tied)


def test_a_voted_result_has_the_winner_and_the_cost_of_all() -> None:
    problem = Problem("a", "copy: tom.", "tom", "tom")
    texts, right = ("ann", "tom", " tom "), (False, True, True)
    runs = [
        [
            result(
                *("a", "", f"run {number}"),
                text=text,
                correct=correct,
                settings={"block_length": 8 * number},
                forwards=number,
                raw_tokens=10,
                seconds=0.5,
                flops=2.0,
                valid_tokens=number + 3,
            )
        ]
        for number, (text, correct) in enumerate(zip(texts, right, strict=True), start=1)
    ]
    (won,) = voted(LISTS, [problem], runs)
    assert (won.text, won.correct, won.valid_tokens) == ("tom", True, 5)
    assert (won.forwards, won.raw_tokens, won.seconds, won.flops) == (6, 30, 1.5, 6.0)
    assert won.details == {"votes": {"8": "ann", "16": "tom", "24": "tom"}, "tied": False}
    assert won.settings == {"block_length": [8, 16, 24]}
    unknown = [[*runs[0]], [Result(**{**vars(runs[1][0]), "flops": None})]]
    assert voted(LISTS, [problem], unknown)[0].flops is None


def test_what_tasks_state_is_what_they_compare(tmp_path: Path) -> None:
    problem = Problem("a", "", "", "7")
    for task, text, stated in (
        (TASKS["arithmetic"], "01+6=07; #### 07", "7"),
        (TASKS["arithmetic"], "seven", None),
        (LISTS, " tom, ann ", "tom, ann"),
        (LISTS, " ", None),
    ):
        assert task.stated is not None
        assert task.stated(problem, text) == stated
    (tmp_path / "gsm.jsonl").write_text(json.dumps({"question": "q", "answer": "#### 1,200"}))
    gsm8k = find_task("gsm8k", TaskOptions(data=tmp_path / "gsm.jsonl", style="zeroshot"))
    assert gsm8k.stated is not None
    assert gsm8k.stated(problem, "so it is $1,200.\nQ: and 3?") == "1200"
    assert gsm8k.stated(problem, "nothing") is None
    for judge, answer, text, stated in (
        ("number", "12", "12 pens, so the answer is 12.", "12"),
        ("number", "12", "none", None),
        ("choice", "B", "the answer is B", "B"),
        ("choice", "B", "?", None),
        ("exact", "ab", " ab", "ab"),
    ):
        (tmp_path / "own.jsonl").write_text(json.dumps({"question": "q", "answer": answer}))
        own = find_task("own", TaskOptions(data=tmp_path / "own.jsonl", judge=judge))
        (asked,) = own.take(1)
        assert own.stated is not None
        assert own.stated(asked, text) == stated


@pytest.mark.parametrize(
    ("vote", "task", "said"),
    [
        ("8,16", "arithmetic", "must be block_length="),
        ("block_length=8", "arithmetic", "2 to 32 different lengths"),
        ("block_length=8,8", "arithmetic", "2 to 32 different lengths"),
        ("block_length=0,8", "arithmetic", "2 to 32 different lengths"),
        ("threshold=0.5,0.9", "arithmetic", "must be block_length="),
        ("block_length=8,16", "functions", "state no answer"),
        ("block_length=8,16", "json", "state no answer"),
    ],
)
def test_other_votes_are_refused(vote: str, task: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_vote(vote, find_task(task))
    done = CliRunner().invoke(app, ["eval", "--task", task, "--vote", vote, "--limit", "1"])
    assert said in str(done.exception)


def test_what_does_not_go_with_a_vote() -> None:
    command = ["eval", "--vote", "block_length=8,16", "--limit", "1"]
    for more in (
        ["--samples", "2", "-t", "1"],
        ["--block-length", "8"],
        ["--set", "block_length=8"],
    ):
        done = CliRunner().invoke(app, [*command, *more])
        assert "leave --samples and --block-length out" in str(done.exception)
    done = CliRunner().invoke(app, [*command, "--schedulers", "all"])
    assert "--vote and --record do not go with" in str(done.exception)


def test_a_vote_is_made_of_plain_runs_and_goes_on(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    output, lengths = tmp_path / "rows.jsonl", (8, 16)
    problems, runs = LISTS.take(3), []
    for length in lengths:
        given: dict[str, Any] = {"scheduler": "threshold:0.6", "block_length": length}
        given |= {"max_new_tokens": 32}
        run = Run(tiny, LISTS, resolve(tiny.defaults, None, given), 3)
        runs.append(list(run.results(problems, output)))
        order = {problem.id: place for place, problem in enumerate(problems)}
        runs[-1].sort(key=lambda one: order[one.id])
    before = output.read_bytes()
    command = ["eval", "--task", "lists", "--vote", "block_length=8,16", "--limit", "3"]
    command += ["-s", "threshold:0.6", "--max-new-tokens", "32", "--output", str(output)]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert output.read_bytes() == before  # nothing is decoded twice
    *own, vote = json.loads(done.stdout)["rows"]
    assert [row["record"]["settings"]["block_length"] for row in own] == list(lengths)
    assert vote["vote"] == {"block_length": list(lengths)}
    expected = summarise(voted(LISTS, problems, runs))
    assert (vote["correct"], vote["forwards"]) == (expected.correct, expected.forwards)
    assert vote["forwards"] == pytest.approx(sum(row["forwards"] for row in own))
    # A run that was stopped: half of one decoding is missing.
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:-2]))
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert len(read_results(output)) == 3
    assert len(output.read_text().splitlines()) == 6
    assert "vote of 8, 16" in " ".join(again.stdout.split())
    assert "tied" in again.stdout
