"""The report of an ablation: its figures, its page, and what it says beside an earlier one."""

from __future__ import annotations

import csv
import html
import json
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dllm.eval.ablation.ablation import Ablation, Row, TaskChoice
from dllm.eval.ablation.bench import Entry, State, Trial
from dllm.eval.ablation.lines import Line, front, groups
from dllm.eval.report.ablation import Report, differences
from dllm.eval.report.aup import areas
from dllm.eval.report.page import page, problems_of, write
from dllm.eval.report.page_figures import Axis, mean_steps
from dllm.eval.run.results import Result, append
from dllm.eval.tasks import TASKS
from dllm.eval.tasks.task import Problem

HOSTILE = '</script><script>alert(1)</script><!--<img src=x onerror="alert(2)">\u202e|`*\n'
VALID = 60  # tokens of a made-up answer
PROBLEMS = [
    Problem(f"p{n}", f"question {n}{HOSTILE}", "", f"answer {n}{HOSTILE}") for n in range(6)
]

Measured = Line[Trial]


def outcome(name: str, right: str, forwards: int = 10, **more: Any) -> Measured:
    """Returns a run on the six problems; `right` has 1 for a right answer, 0 for a wrong one."""
    method, refusal = more.pop("method", name), more.pop("refusal", None)
    choice = TaskChoice("arithmetic")
    row = Row(name, method, "tiny", choice, {}, **more)
    settings = {
        "scheduler": {"name": "threshold", "threshold": 0.9},
        "cache": {"name": "none", "beyond_block": True},
        "max_new_tokens": 64,
    }
    counts = (9, VALID, VALID, forwards, forwards, 1.0, 1.0, "eos", settings)
    results = tuple(
        Result("run", problem.id, problem.prompt, f"{name} says{HOSTILE}", "", mark == "1", *counts)
        for problem, mark in zip(PROBLEMS, right, strict=False)
    )
    return Line(Trial.of(0, row, TASKS["arithmetic"], PROBLEMS), results, refusal)


def lines_of(outcomes: Iterable[Measured]) -> list[Measured]:
    """Returns runs with the numbers that a configuration would give them."""
    numbered = enumerate(outcomes, start=1)
    return [replace(one, candidate=replace(one.candidate, number=n)) for n, one in numbered]


def report_of(*outcomes: Measured, **more: Any) -> Report:
    ablation = Ablation("x", f"about{HOSTILE}", (), (f"note{HOSTILE}",))
    return Report(ablation, lines_of(outcomes), **more)


MIXED = (
    outcome("slow", "111111", 60, method="plain"),
    outcome("quick", "111110", 12, method="fast"),
    outcome("rash", "110000", 6, method="fast"),
    outcome(f"worse{HOSTILE}", "111100", 20),
    outcome("late", "111110", 13),
    outcome("half", "11", 1),
    outcome(f"no{HOSTILE}", "", refusal=f"because{HOSTILE}"),
)


def test_the_front_holds_what_nothing_beats() -> None:
    lines = lines_of(MIXED)
    (members,) = groups(lines).values()
    assert [line.name for line in members] == ["slow", "quick", "rash", f"worse{HOSTILE}", "late"]
    assert front(members, "tokens_per_forward") == {1, 2, 3}


def test_a_curve_of_aup_begins_at_the_slowest_run_and_leaves_losses_out() -> None:
    close = outcome("close", "111111", 30, method="fast")
    found = {area.method: area for area in areas(lines_of((*MIXED, close)))}
    assert found["plain"].value == pytest.approx(100.0)  # one token a forward, all right
    assert found["fast"].value == pytest.approx(200.0)  # and two a forward
    assert (found["fast"].runs, found["fast"].left_out) == (3, 2)
    assert found[f"worse{HOSTILE}"].value == pytest.approx(100.0)
    runs = [
        outcome("first", "111110", 60),
        outcome("other", "111110", 30),
        outcome("best", "111111", 40),
    ]
    found = {area.method: area for area in areas(lines_of(runs))}
    assert found["other"].value == pytest.approx(500 / 6 * (1 + math.exp(-0.5)))
    nothing = outcome("never", "000000")
    (area,) = areas(lines_of([nothing]))
    assert area.value is None


def test_states_are_told() -> None:
    report = report_of(*MIXED)
    said = [row[1] for row in report.tables()[0].rows]
    assert said[0] == "slow *"
    assert said[4] == "late"
    assert said[5] == "half (incomplete: 2 of 6 problems)"
    assert "refused: because" in said[6]


def test_what_constraints_cost_is_there_if_any_run_had_one() -> None:
    free, held = outcome("free", "110011"), outcome("held", "111111")
    (plain,) = report_of(free, outcome("other", "111111")).tables()[:1]
    assert "forced" not in plain.heads
    costs: dict[str, Any] = {
        "forced": 3,
        "nats_lost": 0.5,
        "constraint_seconds": 0.002,
        "steps": 0.5,
    }
    results = [replace(one, details={"valid": True}, **costs) for one in held.results]
    report = report_of(free, replace(held, results=results))
    table = report.tables()[0]
    assert table.heads[-4:] == ["valid", "forced", "nats lost", "constraint ms"]
    assert [list(row[-4:]) for row in table.rows] == [["-"] * 4, ["100.0%", "3.00", "0.50", "4.00"]]
    assert "Nats lost" in table.legend
    first, second = report.records()
    assert first["valid"] is first["forced"] is first["constraint_ms"] is None
    assert (second["valid"], second["forced"], second["nats_lost"]) == (1, 3, 0.5)


def test_files_are_written_and_hold_the_figures(tmp_path: Path) -> None:
    written = write(tmp_path, report_of(*MIXED), 3)
    assert [path.name for path in written] == [
        *("report.md", "report.csv", "report.html", "report.png")
    ]
    with written[1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["accuracy"] == str(5 / 6)
    assert rows[1]["tokens_per_forward"] == "5.0"
    assert [row["on_front"] for row in rows] == ["True"] * 3 + ["False"] * 4
    assert rows[6]["accuracy"] == ""
    text = written[0].read_text(encoding="utf-8")
    assert "83.3% (44-97) | 5.00 |" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "<" not in text


def test_without_a_finished_run_there_is_a_report_and_no_plot(tmp_path: Path) -> None:
    written = write(tmp_path, report_of(*MIXED[5:]), 3)
    assert [path.suffix for path in written] == [".md", ".csv", ".html"]


# The page.


def data_of(text: str) -> Any:
    found = re.findall(r'<script type="application/json" id="answers">(.*?)</script>', text, re.S)
    assert len(found) == 1
    return json.loads(found[0])


def test_no_text_of_the_page_is_executed_and_nothing_is_fetched() -> None:
    text = page(report_of(*MIXED), 6)
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<img" not in text
    assert text.count("<script") == text.count("</script>") == 3
    assert "\u202e" not in text  # turns what follows around
    assert "default-src 'none'" in text
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert set(links) <= {"data:,", "x"}  # x: of the hostile text, which is escaped
    (first, *_) = data_of(text)
    assert first["prompt"].endswith(HOSTILE)
    assert first["answers"][0]["text"] == f"slow says{HOSTILE}"


def test_the_drawings_are_well_formed() -> None:
    traced = traces(outcome("traced", "111111"), [[0, 1, 2]] * 6)
    text = page(report_of(*MIXED, traced), 0)
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    plot = ElementTree.fromstring(drawings[0])
    titles = [title.text or "" for title in plot.iter("title")]
    assert titles[1] == "2: quick: 83.3%, 5.00 tokens/forward, 60 tokens/s"
    assert len(titles) == 6
    assert data_of(text) == []


def test_problems_on_which_runs_disagree_come_first_and_few_are_kept() -> None:
    lines = report_of(*MIXED).lines
    kept = problems_of(lines, 3)
    # Two runs of five are wrong in p4, one in p2, p3 and p5, none in the first two.
    assert [problem["id"] for problem in kept] == ["p4", "p2", "p3"]
    assert [answer["correct"] for answer in kept[0]["answers"]] == [True, True, False, False, True]
    assert problems_of(lines, 0) == []


def test_long_texts_are_cut() -> None:
    long = outcome("long", "1")
    long = replace(long, results=(replace(long.results[0], text="x" * 50_000),))
    (problem,) = problems_of(report_of(long).lines, 1)
    assert problem["answers"][0]["text"].endswith("\n[30,000 more characters]")


def traces(one: Measured, steps: list[list[int]]) -> Measured:
    pairs = zip(one.results, steps, strict=True)
    return replace(one, results=tuple(replace(r, trace={"commit_step": s}) for r, s in pairs))


def test_the_mean_step_is_that_of_the_problems_that_committed_a_column() -> None:
    (line,) = report_of(
        traces(outcome("a", "111"), [[0, 2, -1, 5, -1], [1, 3, -1], [2, -1, -1]])
    ).lines
    assert mean_steps(line) == [1.0, 2.5, None, 5.0]
    (line,) = report_of(outcome("a", "111")).lines
    assert mean_steps(line) == []


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 6.5, [0, 1, 2, 3, 4, 5, 6]),
        (0, 1900, range(0, 1801, 200)),
        (60, 101, range(60, 101, 5)),
        (0, 0.35, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35]),
    ],
)
def test_ticks_are_round_and_not_many(low: float, high: float, ticks: list[float]) -> None:
    axis = Axis(low, high, 0, 100)
    assert axis.ticks == pytest.approx(list(ticks))
    assert (axis.at(low), axis.at(high)) == (0, 100)


# Beside an earlier one.


def kept(folder: Path, *outcomes: Measured) -> Path:
    state = State(folder)
    for number, one in enumerate(outcomes):
        file = f"runs/{number}.jsonl"
        append(folder / file, one.results)
        state.note(one.name, Entry("key", "run", file))
    return folder


def test_changes_are_told_problem_by_problem(tmp_path: Path) -> None:
    before = kept(tmp_path, outcome("a", "110000", 20), outcome("gone", "1"))
    now = [outcome("a", "011110", 10), outcome("new", "1")]
    found = differences(lines_of(now), before)
    a, new, gone = found
    assert (a.now_right, a.now_wrong) == (("p2", "p3", "p4"), ("p0",))
    assert a.accuracy == pytest.approx(100 / 3)
    assert a.speed == (3.0, 6.0)
    assert a.counts.exact_p == pytest.approx(0.625)  # two-sided, of 1 or fewer in four tosses
    assert a.cells[1] == "+33.3 (-27 to +77, p=0.62)"
    assert new.note == "not in the earlier one"
    assert gone.note == "only in the earlier one"
    text = page(report_of(*now, differences=found), 1)
    assert html.escape("3.00 -> 6.00") in text


def test_only_problems_of_both_are_compared(tmp_path: Path) -> None:
    before = kept(tmp_path, outcome("a", "11"))
    (a,) = differences(lines_of([outcome("a", "101111")]), before)
    assert (a.problems, a.accuracy) == (2, -50.0)


def test_other_prompts_are_not_compared(tmp_path: Path) -> None:
    old = outcome("a", "111111")
    other = replace(old, results=tuple(replace(r, prompt="else") for r in old.results))
    (a,) = differences(lines_of([old]), kept(tmp_path, other))
    assert (a.problems, a.note) == (0, "other prompts: not comparable")


def test_a_folder_without_an_ablation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no ablation was measured there"):
        differences([], tmp_path)
    (tmp_path / "ablation.json").write_text("[1, 2", encoding="utf-8")
    with pytest.raises(ValueError, match="is not the record of an ablation"):
        differences([], tmp_path)
