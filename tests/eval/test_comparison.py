"""Comparisons: what counts as worse than the threshold, what is skipped, what is written."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import ConsoleDimensions

import dllm
from dllm.cli.evaluate import evaluate
from dllm.cli.shown import Terminal
from dllm.cli.shown.measured import printed
from dllm.eval.ablation.lines import Line
from dllm.eval.ablation.lines import front as leaders
from dllm.eval.ablation.read import ALL, gather, read_lineup
from dllm.eval.report.plot import Label, draw_comparison, place
from dllm.eval.report.standings import Contender, contender, judge, table
from dllm.eval.run import execute
from dllm.eval.run.results import Result
from dllm.eval.run.run import Run
from dllm.eval.tasks import TASKS
from dllm.settings import resolve

VALID = 60  # tokens of a made-up answer
REFUSING = "fixed_quota:steps=7"  # not a multiple of the embedded model's four blocks
LINEUP = f"""
- {{label: threshold, settings: ["threshold:0.9", "threshold:0"]}}
- {REFUSING}
- {{name: fixed_quota, steps: 16}}
"""

Measured = Line[Contender]
Outcomes = Callable[..., Measured]


@pytest.fixture(name="made")
def make_outcome(tiny: dllm.HostedModel) -> Outcomes:
    """Returns a maker of outcomes on ten problems, from what they came to."""
    problems, numbers = TASKS["arithmetic"].take(10), list[int]()

    def contend(scheduler: str, cache: str) -> Contender:
        settings = resolve(tiny.defaults, None, {"scheduler": scheduler, "cache": cache})
        (entry,) = gather(None, [scheduler])
        run = Run(tiny, TASKS["arithmetic"], settings)
        number = len(numbers) + 1
        numbers.append(number)
        return contender(number, entry, run, problems, names_cache=False)

    def outcome(
        scheduler: str,
        correct: int,
        forwards: int,
        row_forwards: int | None = None,
        cache: str = "none",
        num: int = 10,
    ) -> Measured:
        contended = contend(scheduler, cache)
        described = contended.run.describe()
        counts = (VALID, VALID, forwards, row_forwards or forwards)
        results = tuple(
            Result("run", str(n), "", "", "", n < correct, 9, *counts, 1.0, 1.0, "eos", described)
            for n in range(num)
        )
        return Line(contended, results)

    return outcome


def front(lines: Sequence[Measured]) -> list[str]:
    return [line.name for line in lines if line.number in leaders(lines)]


@pytest.mark.parametrize(
    ("correct", "forwards", "verdict"),
    [
        (8, 11, "worse than threshold:0.95"),  # slower and less often right
        (9, 11, "worse than threshold:0.95"),  # slower
        (8, 10, "worse than threshold:0.95"),  # less often right
        (7, 5, "equal to threshold:0.8"),
        (6, 5, "worse than threshold:0.8"),
        (6, 11, "worse than threshold:0.8"),  # beaten by both, the faster one is named
        (8, 9, "not worse"),  # between the two
        (10, 60, "not worse"),
        (1, 4, "not worse"),
    ],
)
def test_a_setting_is_worse_if_a_threshold_has_its_accuracy_and_its_speed(
    made: Outcomes, correct: int, forwards: int, verdict: str
) -> None:
    baselines = [made("threshold:0.95", 9, 10), made("threshold:0.8", 7, 5)]
    assert judge([*baselines, made("factor", correct, forwards)]) == [
        "baseline",
        "baseline",
        verdict,
    ]


def test_variants_of_a_row_are_told_from_speed(made: Outcomes) -> None:
    baseline = made("threshold", 9, 10)
    bought = made("factor", 9, 8, row_forwards=32)
    earned = made("factor", 9, 6, row_forwards=9)
    assert judge([baseline, bought, earned]) == [
        "baseline",
        "worse per row than threshold",
        "not worse",
    ]


def test_only_finished_runs_on_the_same_cache_are_compared(made: Outcomes) -> None:
    cut = made("threshold", 6, 1, num=6)  # right in all of the shortest problems
    refused = replace(made("dream", 0, 1, num=0), refusal="no")
    dual, plain = made("factor", 1, 60, cache="dual"), made("factor", 1, 60)
    lines = [cut, refused, dual, plain, made("threshold:0.8", 5, 5, cache="dual")]
    assert judge(lines) == [
        "incomplete: 6 of 10 problems",
        "refused: no",
        "worse than threshold:0.8",
        "no threshold to compare with",
        "baseline",
    ]
    assert lines[1].summary is None
    assert front(lines) == ["threshold:0.8"]


def test_the_front_holds_what_nothing_beats(made: Outcomes) -> None:
    outcomes = [
        made("threshold:0.9", 9, 10),
        made("threshold:0.8", 7, 5),
        made("factor", 7, 5),
        made("factor:0.5", 7, 6),
        made("fixed_quota", 10, 60),
    ]
    assert front(outcomes) == ["threshold:0.9", "threshold:0.8", "factor", "fixed_quota"]


def printed_table(lines: Sequence[Measured], width: int) -> str:
    terminal = Terminal()
    terminal.size = ConsoleDimensions(width, 25)
    with terminal.capture() as shown:
        terminal.print_table(printed(table("title", lines), width))
    return shown.get()


def test_no_column_is_cut_off_at_80_columns(made: Outcomes) -> None:
    refused = replace(made("dream", 0, 1, num=0), refusal="for a reason that is long")
    long = "quota_threshold:0.8,steps=16"
    rows = [made("threshold", 10, 10), made(long, 9, 60), refused]
    lines = printed_table(rows, 80).splitlines()
    shown = [line.split() for line in lines]
    assert ["quota_threshold:0.8,", "90.0%", "(60-98)", "1.00", "60.0", "60.0", "worse"] in [
        words[:7] for words in shown
    ]
    column = next(line.index("beside") for line in lines if "beside" in line)
    last = " ".join(" ".join(line[column:] for line in lines).split())
    assert "baseline worse than threshold refused: for a reason that is long" in last
    assert f"{long} " in printed_table(rows, 120)


def test_the_shipped_list_makes_curves() -> None:
    entries = read_lineup(ALL)  # builds each scheduler
    labels = [entry.label for entry in entries]
    assert labels.count("threshold") >= 3
    assert all(labels.count(label) <= 5 for label in set(labels))
    assert len({entry.text for entry in entries}) == len(entries)


def test_items_of_a_list_may_be_groups_texts_or_mappings(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(LINEUP + '- {label: eager, settings: ["dream:maskgit_plus,steps=8", factor]}\n')
    found = [
        (entry.label, entry.text, entry.setting)
        for entry in gather(str(file), ["fixed_quota:order=random"])
    ]
    assert found == [
        ("threshold", "threshold:0.9", "0.9"),
        ("threshold", "threshold:0", "0"),
        ("fixed_quota", REFUSING, "steps=7"),
        ("fixed_quota", "fixed_quota:16", "16"),
        ("eager", "dream:maskgit_plus,steps=8", "maskgit_plus,steps=8"),
        ("eager", "factor", ""),
        ("fixed_quota", "fixed_quota:order=random", "order=random"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- [", "own.yaml is not YAML"),
        ("threshold: 0.9", "must hold a YAML list"),
        ("[]", "must hold a YAML list"),
        ("- factor\n- treshold:0.9", "item 2: unknown scheduler 'treshold': did you mean 'thres"),
        ("- fixed_quota:step=4", "item 1: scheduler 'fixed_quota' has no option 'step'"),
        ("- 0.9", "item 1: a scheduler is a name, a mapping"),
        ("- {label: a, setting: [factor]}", "item 1: .*must be a label, which is text, and a list"),
        ("- {label: a, settings: factor}", "item 1: .*a list of settings"),
        ("- {label: a, settings: []}", "item 1: label 'a' has no settings"),
    ],
)
def test_a_wrong_list_names_file_and_item(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        gather(str(file))


def compare(folder: Path, lineup: str = LINEUP, **options: Any) -> None:
    """Runs the command on four problems."""
    folder.mkdir(exist_ok=True)
    (folder / "own.yaml").write_text(lineup)
    evaluate(
        lineup=str(folder / "own.yaml"),
        limit=4,
        output=folder / "runs",
        plot=folder / "pareto.png",
        **options,
    )


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


@pytest.mark.slow
def test_a_comparison_is_measured_once_and_reported_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    compare(tmp_path)
    runs = tmp_path / "runs"
    printed = capsys.readouterr()
    assert max(map(len, printed.out.splitlines())) <= 80
    assert "4 held-out problems, tiny, 64 new tokens, blocks of 16" in printed.out
    assert "refused:" in printed.out
    assert "refused: steps=7" in printed.err
    assert sorted(file.name for file in runs.glob("*.jsonl")) == [
        "fixed_quota-16.jsonl",
        "threshold-0.9.jsonl",
        "threshold-0.jsonl",
    ]
    assert min(png_size(tmp_path / "pareto.png")) > 300
    with (runs / "arithmetic.csv").open(newline="") as file:
        rows = {row["scheduler"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["threshold:0.9", "threshold:0", REFUSING, "fixed_quota:16"]
    assert rows["threshold:0"]["verdict"] == "baseline"
    assert float(rows["fixed_quota:16"]["row_forwards"]) >= 4
    assert rows[REFUSING]["accuracy"] == ""
    assert "multiple of the 4 blocks" in rows[REFUSING]["verdict"]
    table = (runs / "arithmetic.md").read_text()
    assert f"| {REFUSING} | - | - | - | - | refused: steps=7" in table

    monkeypatch.setattr(execute, "results", only_refuses(execute.results))
    (runs / "arithmetic.md").unlink()
    (tmp_path / "pareto.png").unlink()
    compare(tmp_path, as_json=True)
    again = json.loads(capsys.readouterr().out)["rows"]
    assert [row["accuracy"] for row in again] == [
        float(row["accuracy"]) if row["accuracy"] else None for row in rows.values()
    ]
    assert (runs / "arithmetic.md").read_text() == table
    assert png_size(tmp_path / "pareto.png")


def only_refuses(original: Callable[..., Any]) -> Callable[..., Any]:
    """A batch that must not be reached but by the run that has no results to go on from."""

    def batch(run: Run, problems: Any) -> Any:
        assert run.describe()["scheduler"]["steps"] == 7
        return original(run, problems)

    return batch


def test_ctrl_c_prints_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = execute.results
    calls: list[Any] = []

    def stopped(run: Run, problems: Any) -> Any:
        calls.append(problems)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(run, problems)

    monkeypatch.setattr(execute, "results", stopped)
    with pytest.raises(typer.Exit) as stop:
        compare(tmp_path, "- threshold:0\n- factor\n- dream\n", batch_size=3)
    assert stop.value.exit_code == 130
    printed = capsys.readouterr()
    assert "baseline" in printed.out
    assert "factor" not in printed.out
    assert "the same command goes on" in printed.err
    assert [file.name for file in (tmp_path / "runs").glob("*.jsonl")] == ["threshold-0.jsonl"]
    assert not (tmp_path / "pareto.png").exists()


def test_mistakes_are_found_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("")
    for options, message in (
        ({"lineup": "no-such.yaml"}, "no such file with a list of schedulers: no-such.yaml"),
        ({"lineup": "all", "plot": Path("plot.pdf")}, "plot=plot.pdf must end in .png"),
        ({"lineup": "all", "output": Path("rows.jsonl")}, "output=rows.jsonl must be a folder"),
        ({"lineup": "all", "output": tmp_path / "rows"}, "must be a folder"),
        ({"plot": Path("plot.png")}, "nothing to compare"),
        (
            {"scheduler": ["threshold", "threshold:0.9"], "plot": Path("plot.png")},
            "'threshold' and 'threshold:0.9' are the same setting",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(limit=1, **options)


def test_a_comparison_that_is_refused_throughout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"every scheduler refused.* multiple of the 4 blocks"):
        compare(tmp_path, f"- {REFUSING}\n")
    assert not (tmp_path / "pareto.png").exists()


def test_a_plot_needs_a_finished_run(made: Outcomes, tmp_path: Path) -> None:
    cut = [made("threshold", 6, 1, num=6)]
    assert not draw_comparison(tmp_path / "none.png", "title", cut)
    assert not (tmp_path / "none.png").exists()


def test_the_surroundings_of_the_threshold_get_a_panel(made: Outcomes, tmp_path: Path) -> None:
    near = [made("threshold:0.9", 9, 10), made("threshold:0.8", 8, 9), made("factor", 8, 10)]
    far = [*near, made("fixed_quota", 2, 60)]
    widths = {}
    for name, outcomes in (("near", near), ("far", far)):
        assert draw_comparison(tmp_path / f"{name}.png", "title", outcomes)
        widths[name] = png_size(tmp_path / f"{name}.png")[0]
    assert widths["far"] > 1.5 * widths["near"]


def test_labels_of_a_cluster_stay_apart() -> None:
    figure = Figure(figsize=(6, 4), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 10), ylim=(0, 100))
    canvas.draw()
    labels = [Label(5 + n / 20, 50 + n % 3, f"setting={n}", "black") for n in range(12)]
    boxes = place(axes, labels, 8)
    frame = axes.get_window_extent()
    assert len(boxes) == 12
    for number, box in enumerate(boxes):
        assert not any(box.overlap(other) for other in boxes[:number])
        assert frame.x0 <= box.left < box.right <= frame.x1


@pytest.mark.slow
def test_the_command_line_starts_without_matplotlib() -> None:
    code = "import sys, dllm.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
