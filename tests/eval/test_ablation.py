"""Ablations: what a configuration may say, what is run, and what a kill leaves."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.constraints import Choice, Regex
from dllm.eval.ablation.ablation import Published, Row, agreement
from dllm.eval.ablation.bench import locked
from dllm.eval.ablation.read import find_config, read_ablation, shipped
from dllm.eval.run.summary import Summary
from dllm.settings import resolve
from tests.support import GOLDEN, ROOT
from tests.support.models import golden_model
from tests.support.processes import start_dllm, wait_until

FAST = {"task": "arithmetic", "max_new_tokens": 32, "block_length": 16, "batch_size": 4}
COMMON = {"about": "a test", "limit": 6, "common": FAST}


def written(path: Path, **content: Any) -> Path:
    path.write_text(yaml.safe_dump({**COMMON, **content}, sort_keys=False), encoding="utf-8")
    return path


def ablate(*words: str | Path) -> Any:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["ablate", *map(str, words)])


def lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "runs").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def report(folder: Path) -> list[dict[str, str]]:
    with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("tokens_per_second")  # is not the same twice, as costs after a kill are not:
        row.pop("tokens_fed")  # other rows are then beside
    return rows


# What a configuration may say.


def test_a_grid_has_every_combination_less_the_excluded(tmp_path: Path) -> None:
    grid: dict[str, Any] = {"scheduler": ["fixed_quota", "threshold:0.9"]}
    grid |= {"cache": ["none", "dual"], "verifier": [None, "ssd:2"], "max_new_tokens": [32, 64]}
    exclude = [{"scheduler": "threshold:0.9", "verifier": "ssd:2"}, {"cache": ["dual"]}]
    rows = read_ablation(written(tmp_path / "x.yaml", grid=grid, exclude=exclude)).rows
    assert [row.name for row in rows] == [
        "fixed_quota, max_new_tokens=32",
        "fixed_quota, max_new_tokens=64",
        "fixed_quota + ssd:2, max_new_tokens=32",
        "fixed_quota + ssd:2, max_new_tokens=64",
        "threshold:0.9, max_new_tokens=32",
        "threshold:0.9, max_new_tokens=64",
    ]
    assert rows[2].method == "fixed_quota + ssd:2"
    assert rows[0].given["max_new_tokens"] == 32  # over the 32 of `common`
    assert rows[1].given["max_new_tokens"] == 64


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"grids": {}}, "unknown key 'grids': did you mean 'grid'?"),
        ({"grid": {"schedular": "dream"}}, "grid: unknown key 'schedular': did you mean"),
        ({"settings": [{"name": "a", "block_lenght": 8}]}, "item 1: unknown key 'block_lenght'"),
        ({"settings": [{"scheduler": "dream"}]}, "item 1 needs a 'name'"),
        ({"settings": [{"name": "a"}, {"name": "a"}]}, "two rows are called 'a'"),
        (
            {"settings": [{"name": "a", "scheduler": "treshold"}]},
            r"item 1 \(a\): unknown scheduler",
        ),
        ({"settings": [{"name": "a", "cache": "duel"}]}, "unknown cache 'duel'"),
        ({"settings": [{"name": "a", "verifier": "sdd"}]}, "unknown verifier 'sdd'"),
        ({"settings": [{"name": "a", "task": "gms8k"}]}, "unknown task 'gms8k'"),
        ({"settings": [{"name": "a", "task": {"name": "lists", "shots": 2}}]}, "shots=2"),
        ({"settings": [{"name": "a", "task": {"shot": 2}}]}, "task: unknown key 'shot'"),
        ({"settings": [{"name": "a", "temperature": -1}]}, "temperature=-1 must be 0 or more"),
        ({"settings": [{"name": "a", "batch_size": 0}]}, "batch_size=0 must be at least 1"),
        ({"settings": [{"name": "a", "published": None}]}, "needs 'because'"),
        ({"settings": [{"name": "a", "published": {"acuracy": 1}}]}, "unknown key 'acuracy'"),
        ({"settings": [{"name": "a", "published": {"accuracy": 9}}]}, "need a 'source'"),
        ({"settings": [{"name": "a", "published": {"accuracy": "9"}}]}, "must be a number"),
        ({"settings": [{"name": "a", "because": "why"}]}, "because: it gives the reason"),
        ({"settings": "threshold"}, "settings must be a list"),
        ({"grid": {"cache": []}}, "cache has no values"),
        ({"grid": {"cache": "dual"}, "exclude": [{"cache": "none"}]}, "no combination has"),
        ({"grid": {"cache": "dual"}, "exclude": [{"cache": "dual"}]}, "every combination"),
        ({"exclude": [{"cache": "dual"}]}, "exclude: there is no grid"),
        ({"about": None}, "about=None must be one line of text"),
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({}, "there is nothing to run"),
        ({"grid": {"constraint": {"regex": "("}}}, r"constraint: regex '\(' is invalid at posi"),
        ({"grid": {"constraint": [None, {"regexp": "a"}]}}, "has no kind: did you mean 'regex'"),
        (
            {"settings": [{"name": "a", "constraint": {"json_schema": {"file": "no.json"}}}]},
            r"item 1 \(a\): constraint: there is no file 'no.json' in /",
        ),
        (
            {"settings": [{"name": "a", "constraint": [{"regex": "a"}, None]}]},
            "is one for each prompt, and a row has one for all of them",
        ),
    ],
)
def test_errors_name_the_file_and_the_key(
    content: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "x.yaml", **content)
    with pytest.raises(ValueError, match=said) as raised:
        read_ablation(path)
    assert str(path) in str(raised.value)


def test_constraints_are_alternatives_of_a_grid(tmp_path: Path) -> None:
    (tmp_path / "digits.txt").write_text("[0-9]+\n", encoding="utf-8")
    file = {"regex": {"file": str(tmp_path / "digits.txt")}}
    grid = {"scheduler": "threshold", "constraint": [None, {"choice": ["8", "9"]}, file]}
    rows = read_ablation(written(tmp_path / "x.yaml", grid=grid)).rows
    assert [row.name for row in rows] == [
        "threshold, constraint=none",
        "threshold, constraint=Choice(('8', '9'))",
        f"threshold, constraint=regex:{tmp_path / 'digits.txt'}",
    ]
    names = ["threshold", "threshold + Choice(('8', '9'))", "threshold + Regex([0-9]+)"]
    assert [row.method for row in rows] == names  # another constraint is another curve
    assert [row.given.get("constraint") for row in rows] == [
        None,
        Choice(["8", "9"]),
        Regex("[0-9]+"),
    ]


def test_a_required_file_of_a_constraint_may_be_missing(tmp_path: Path) -> None:
    held = {"regex": {"file": "nowhere.txt"}}
    row = {"name": "a", "constraint": held, "requires": {"nowhere.txt": "write it"}}
    (read,) = read_ablation(written(tmp_path / "x.yaml", settings=[row])).rows
    assert read.missing == "needs nowhere.txt (write it)"
    assert "constraint" not in read.given


def test_a_row_is_measured_again_only_if_its_constraint_is_another(tmp_path: Path) -> None:
    file, folder = tmp_path / "digits.txt", tmp_path / "out"
    settings = [{"name": "a", "constraint": {"regex": {"file": str(file)}}}]
    path = written(tmp_path / "x.yaml", settings=settings, limit=2)
    for content, number in [("[0-9]", 2), ("[0-9]\n", 2), ("[0-9]|[0-9]{40}", 4)]:
        file.write_text(content, encoding="utf-8")
        done = ablate(path, "--output", folder)
        assert done.exit_code == 0, done.output
        assert len(lines(folder)) == number
    assert "measured anew" in done.stderr
    assert all(re.fullmatch("[0-9]", line["text"]) for line in lines(folder))
    held = [line["settings"]["other"]["constraint"] for line in lines(folder)]
    assert {json.loads(text)["regex"] for text in held} == {"[0-9]", "[0-9]|[0-9]{40}"}


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "\x00", "just text"])
def test_a_file_that_is_no_ablation_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.yaml"):
        read_ablation(path)


def test_configurations_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert find_config("quickstart") == shipped()["quickstart"]
    assert find_config(str(written(tmp_path / "mine.yaml"))) == tmp_path / "mine.yaml"
    with pytest.raises(ValueError, match="did you mean 'quickstart'"):
        find_config("quikstart")
    with pytest.raises(ValueError, match="no such configuration"):
        find_config("elsewhere/quickstart.yaml")
    assert "schedulers" not in shipped()  # a list of another command


def test_list_names_each_with_one_line() -> None:
    done = ablate("--list")
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(shipped())
    rows = json.loads(ablate("--list", "--json").stdout)["rows"]
    assert [row["name"] for row in rows] == list(shipped())
    assert next(row["runs"] for row in rows if row["name"] == "quickstart") == 12


def test_the_configuration_of_the_docs_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guides" / "ablation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    path = tmp_path / "docs.yaml"
    path.write_text(code, encoding="utf-8")
    names = [row.name for row in read_ablation(path).rows]
    assert all(f"`{name}`" in text for name in names)
    assert len(names) == 4
    assert all(f"`{name}`" in text for name in shipped())


# What is shipped.


@pytest.fixture
def with_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the file that one configuration requires."""
    source = GOLDEN / "models" / "l2p_filter" / "filter32.safetensors"
    shutil.copy(source, tmp_path / "learn2pd-llada.safetensors")
    monkeypatch.chdir(tmp_path)


def stand_in(row: Row) -> dllm.HostedModel:
    """A random model of the row's architecture, with room for long prompts and answers."""
    if row.model == "tiny":
        return dllm.load("tiny")
    model = golden_model("dream_gqa" if "Dream" in row.model else "llada_mha")
    spec = replace(model.spec, max_length=4096)
    return dllm.HostedModel(row.model, model.network, spec, None, {}, {})


@pytest.mark.parametrize("name", sorted(shipped()))
@pytest.mark.usefixtures("with_filter")
def test_every_shipped_row_suits_its_architecture(name: str) -> None:
    ablation = read_ablation(shipped()[name])
    assert "\n" not in ablation.about
    for row in ablation.rows:
        assert not row.missing
        model = stand_in(row)
        settings = resolve(model.defaults, None, row.given)
        dllm.stream(model, [[1, 2, 3]], settings)  # checks everything but runs nothing


@pytest.mark.parametrize("name", sorted(set(shipped()) - {"quickstart", "structured"}))
def test_every_published_row_has_a_figure_with_its_source_or_a_reason(name: str) -> None:
    for row in read_ablation(shipped()[name]).rows:
        published = row.published
        assert published is not None, row.name
        assert published.accuracy is not None or published.because
        assert published.source
        assert row.batch_size == 1


@pytest.mark.slow
def test_what_is_required_and_missing_is_a_refusal(tmp_path: Path) -> None:
    needs = {"requires": {"nowhere.bin": "train it"}, "scheduler": "learn2pd:filter=nowhere.bin"}
    path = written(tmp_path / "x.yaml", settings=[{"name": "a"}, {"name": "b", **needs}])
    assert ablate(path, "--output", tmp_path / "out").exit_code == 0
    assert report(tmp_path / "out")[1]["state"] == "refused: needs nowhere.bin (train it)"


# Published figures.


def summary(correct: int, scored: int, **more: Any) -> Summary:
    zeros = dict.fromkeys(
        (
            *("accuracy_low", "accuracy_high", "forwards", "row_forwards", "tokens_fed"),
            *("tokens_per_forward", "tokens_per_row_forward", "raw_tokens_per_forward"),
            "tokens_per_second",
        ),
        0.0,
    )
    share = correct / scored if scored else 0.0
    counts = {"problems": scored, "correct": correct, "accuracy": share, "scored": scored}
    return Summary(scheduler="x", cache="y", **{**zeros, **counts, **more})


PUBLISHED = Published("a paper", accuracy=79.3)


@pytest.mark.parametrize(
    ("published", "measured", "said", "inside"),
    [
        (PUBLISHED, summary(1046, 1319), "inside 77.0-81.4", True),
        (PUBLISHED, summary(1018, 1319), "inside 77.0-81.4", True),
        (PUBLISHED, summary(1010, 1319), "outside 77.0-81.4", False),
        (PUBLISHED, summary(1080, 1319), "outside 77.0-81.4", False),
        (PUBLISHED, summary(79, 100), "limited run: 100 of 1,319 problems", None),
        (PUBLISHED, summary(0, 0), "not scored", None),
        (PUBLISHED, None, "not measured", None),
        (None, summary(1, 1), "", None),
        (Published("p", 79.3, differs="the prompt"), summary(1046, 1319), "the prompt", None),
        (Published("p", because="no table"), summary(1046, 1319), "not published: no table", None),
        (Published("p", 79.3, score="strict"), summary(1046, 1319), "no score 'strict'", None),
        (
            Published("p", 60.0, score="strict"),
            summary(1046, 1319, scores={"strict": 0.6}),
            "inside 57.3-62.6",
            True,
        ),
    ],
)
def test_only_full_runs_of_the_same_settings_are_compared(
    published: Published | None, measured: Summary | None, said: str, inside: bool | None
) -> None:
    found = agreement(published, measured, "gsm8k")
    assert said in found
    assert found.startswith("inside") is (inside is True)
    assert found.startswith("outside") is (inside is False)


def test_another_model_is_never_compared_with_what_was_published() -> None:
    found = agreement(PUBLISHED, summary(1046, 1319), "gsm8k", "the model 'tiny'")
    assert found.startswith("not comparable")
    assert "tiny" in found


# What is run.


@pytest.mark.slow
def test_a_refused_row_does_not_stop_the_others(tmp_path: Path) -> None:
    rows = [{"name": "odd", "scheduler": "fixed_quota:steps=7"}, {"name": "fine"}]
    out = tmp_path / "out"
    done = ablate(written(tmp_path / "x.yaml", settings=rows), "--output", out)
    assert done.exit_code == 0, done.output
    odd, fine = report(out)
    assert odd["state"].startswith("refused: ")
    assert "steps=7" in odd["state"]
    assert odd["accuracy"] == ""
    assert (fine["state"], fine["problems"]) == ("", "6")
    assert {path.name for path in out.iterdir()} >= {"report.md", "report.html", "report.png"}


def test_rows_with_and_without_the_constraints_of_problems(tmp_path: Path) -> None:
    sums = {"task": "json", "max_new_tokens": 8}
    settings = [
        {"name": "held", **sums},
        {"name": "free", "constrained": False, **sums},
        {"name": "none to leave out", "constrained": False},
        {"name": "records", **sums, "task": {"name": "json:records,fields=1", "style": "chat"}},
    ]
    folder = tmp_path / "out"
    done = ablate(written(tmp_path / "a.yaml", settings=settings), "--output", folder)
    assert done.exit_code == 0, done.output
    held, free, nothing, records = report(folder)
    assert float(held["valid"]) == 1 >= float(free["valid"])
    assert float(held["constraint_ms"]) > 0
    assert (free["forced"], free["nats_lost"], free["constraint_ms"]) == ("", "", "")
    assert [row["method"] for row in (held, free)] == ["threshold", "threshold (free)"]
    assert "refused: --no-constrained" in nothing["state"]
    assert "no text that the tokenizer's tokens can spell" in records["state"]
    again = ablate(tmp_path / "a.yaml", "--output", folder)
    assert "2 of 4 runs were there already" in again.output


def test_if_all_rows_are_refused_that_is_an_error(tmp_path: Path) -> None:
    rows = [{"name": "odd", "scheduler": "fixed_quota:steps=7"}]
    path = written(tmp_path / "x.yaml", settings=rows)
    with pytest.raises(ValueError, match=r"every run was refused:\nodd: steps=7"):
        CliRunner().invoke(
            app, ["ablate", str(path), "--output", str(tmp_path / "o")], catch_exceptions=False
        )


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_a_refusal(tmp_path: Path) -> None:
    rows = [{"name": "here"}, {"name": "gone", "model": str(tmp_path / "nowhere")}]
    assert ablate(written(tmp_path / "x.yaml", settings=rows), "--output", tmp_path).exit_code == 0
    assert "the model cannot be loaded" in report(tmp_path)[1]["state"]


@pytest.mark.slow
def test_what_is_there_is_not_run_again_and_no_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "x.yaml", grid={"scheduler": ["threshold", "factor"]})
    assert ablate(path, "--output", tmp_path / "out").exit_code == 0
    before, figures = lines(tmp_path / "out"), report(tmp_path / "out")
    assert len(before) == 12
    monkeypatch.setattr("dllm.eval.ablation.bench.load", None)
    done = ablate(path, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert lines(tmp_path / "out") == before
    assert report(tmp_path / "out") == figures
    assert "2 of 2 runs were there already" in done.stderr


@pytest.mark.slow
def test_a_row_that_now_asks_for_something_else_is_run(tmp_path: Path) -> None:
    path = written(tmp_path / "x.yaml", settings=[{"name": "a", "scheduler": "threshold:0.9"}])
    assert ablate(path, "--output", tmp_path / "out").exit_code == 0
    written(path, settings=[{"name": "a", "scheduler": "threshold:0.5"}])
    assert ablate(path, "--output", tmp_path / "out", "--limit", "2").exit_code == 0
    (row,) = report(tmp_path / "out")
    assert (row["scheduler"], row["problems"]) == ("threshold:0.5", "2")
    assert len(lines(tmp_path / "out")) == 8


def test_two_rows_of_one_setting_are_measured_once(tmp_path: Path) -> None:
    rows = [{"name": "a", "scheduler": "threshold"}, {"name": "b", "scheduler": "threshold:0.9"}]
    assert ablate(written(tmp_path / "x.yaml", settings=rows), "--output", tmp_path).exit_code == 0
    assert len(lines(tmp_path)) == 6
    assert {row["accuracy"] for row in report(tmp_path)} == {report(tmp_path)[0]["accuracy"]}


def test_a_folder_belongs_to_one_command_at_a_time(tmp_path: Path) -> None:
    said = "another `dllm ablate` is at work"
    with locked(tmp_path), pytest.raises(ValueError, match=said), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quikstart"], "did you mean 'quickstart'"),
        ([], "name a configuration"),
        (["quickstart", "--data", "x.jsonl"], "makes its own problems"),
        (["quickstart", "--run-code"], "no row has a task with code"),
        (["fast_dllm_llada", "--data", "x.jsonl"], "gsm8k=x.jsonl"),
        (["fast_dllm_llada", "--data", "lists=x.jsonl"], "no row has the task 'lists'"),
        (["fast_dllm_llada", "--data", "gsm8k=/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
        (["quickstart", "--compare", "/nowhere"], "no ablation was measured there"),
        (["quickstart", "--output", __file__], "must be a folder"),
    ],
)
def test_command_lines_that_cannot_be(words: list[str], said: str) -> None:
    done = ablate(*words)
    assert isinstance(done.exception, ValueError), done.output
    assert said in str(done.exception)


@pytest.mark.slow
def test_published_rows_run_on_another_model_and_are_not_compared(tmp_path: Path) -> None:
    data = tmp_path / "gsm8k.jsonl"
    problem = {"question": "tom has 3 pens and buys 4. how many?", "answer": "3+4=7\n#### 7"}
    data.write_text("".join(json.dumps(problem) + "\n" for _ in range(3)), encoding="utf-8")
    path = tmp_path / "x.yaml"
    task = {"name": "gsm8k", "style": "zeroshot"}
    published = {"accuracy": 50, "source": "nowhere", "problems": 1}
    rows = [{"name": "a", "model": "owner/huge", "task": task, "published": published}]
    written(path, settings=rows)
    words = ("--data", data, "--output", tmp_path / "out")
    done = ablate(path, "--model", "tiny", *words)
    assert done.exit_code == 0, done.output
    (row,) = report(tmp_path / "out")
    assert row["agreement"] == "not comparable: the model 'tiny' is not the configuration's"
    rows[0]["model"] = "tiny"
    written(path, settings=rows)
    assert ablate(path, *words).exit_code == 0
    (row,) = report(tmp_path / "out")
    assert row["agreement"].split()[0] in ("inside", "outside")
    assert "Published and measured" in (tmp_path / "out" / "report.md").read_text()


# Kills.


def num_lines(folder: Path) -> int:
    return sum(file.read_text().count("\n") for file in (folder / "runs").glob("*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_loses_nothing_and_nothing_is_done_twice(kill: int, tmp_path: Path) -> None:
    grid = {"scheduler": ["fixed_quota", "threshold"]}
    path = written(tmp_path / "x.yaml", grid=grid, limit=6)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = start_dllm("ablate", str(path), "--output", str(stopped))
    wait_until(lambda: num_lines(stopped) >= 2, process)
    process.send_signal(kill)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if kill == signal.SIGKILL else 130), errors
    done = len(lines(stopped))
    assert 2 <= done < 12
    if kill == signal.SIGINT:
        assert "the same command goes on" in errors
        assert sum("incomplete" in row["state"] for row in report(stopped)) >= 1
    assert ablate(path, "--output", stopped).exit_code == 0
    assert ablate(path, "--output", whole).exit_code == 0
    assert report(stopped) == report(whole)
    keys = [(line["run"], line["id"]) for line in lines(stopped)]
    assert len(keys) == len(set(keys)) == 12
