"""What is written beside the results: settings, environment, starts, totals over all of them."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.eval.report.standings import heading
from dllm.eval.report.tables import notes_of
from dllm.eval.run import execute
from dllm.eval.run import record as environment
from dllm.eval.run.describe import label_of
from dllm.eval.run.record import beside, environment_of, note, read_records
from dllm.eval.run.results import RefusedError, Result, append, read_results
from dllm.eval.run.run import Run
from dllm.eval.run.summary import full_record, summarise, totals_of
from dllm.eval.tasks import TASKS
from dllm.learn2pd import TINY
from dllm.models.digest import weights_digest
from dllm.settings import resolve
from tests.support.runs import result


def run_of(model: Any, batch_size: int = 4, **given: Any) -> Run:
    return Run(model, TASKS["arithmetic"], resolve(model.defaults, None, given), batch_size)


def test_a_description_has_what_there_is(tiny: dllm.HostedModel) -> None:
    described = run_of(tiny).describe()
    assert not {"verifier", "files", "task_options", "noise", "generator"} & set(described)
    assert described["version"] == dllm.__version__
    assert set(described["sources"]) == {"scheduler", "cache", "task"}
    assert run_of(tiny).name == run_of(dllm.load("tiny")).name


def test_a_verifier_names_another_run_and_is_shown(tiny: dllm.HostedModel) -> None:
    plain, verified = run_of(tiny), run_of(tiny, verifier="ssd:3")
    assert verified.name not in (plain.name, run_of(tiny, verifier="ssd:2").name)
    assert verified.describe()["verifier"]["draft_length"] == 3
    assert label_of(plain.describe()) == "threshold / none"
    assert label_of(verified.describe()) == "threshold / none / ssd:3"
    assert heading(verified, 2).endswith(", verifier ssd:3")
    assert "verifier" not in heading(plain, 2)


def test_a_filter_trained_anew_makes_a_new_run(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    file = tmp_path / "filter"
    file.write_bytes(TINY.read_bytes())
    given: Any = {"scheduler": {"name": "learn2pd", "filter": str(file)}}
    wrapped: Any = {"scheduler": {"name": "end_of_text", "inner": given["scheduler"]}}
    first, inner = run_of(tiny, **given).name, run_of(tiny, **wrapped).name
    assert run_of(tiny, **given).name == first
    content = bytearray(TINY.read_bytes())
    content[-1] ^= 1  # of a weight
    file.write_bytes(content)
    assert run_of(tiny, **given).name != first
    assert run_of(tiny, **wrapped).name != inner
    assert list(run_of(tiny, **wrapped).describe()["files"]) == ["scheduler.inner.filter"]
    assert "files" not in run_of(tiny, scheduler="learn2pd").describe()


def test_every_start_is_recorded_and_its_lines_name_it(
    tiny: dllm.HostedModel, tmp_path: Path
) -> None:
    problems, output = TASKS["arithmetic"].take(5), tmp_path / "rows.jsonl"
    list(run_of(tiny, 2).results(problems[:3], output))
    list(run_of(tiny, 1).results(problems, output))
    list(run_of(tiny, 1).results(problems, output))  # nothing is left: no start
    list(run_of(tiny, scheduler="fixed_quota").results(problems[:1], output))
    run = run_of(tiny)
    assert beside(output).name == "rows.runs.json"
    records = read_records(output)
    assert len(records) == 2
    record = records[run.name]
    assert [start.batch_size for start in record.starts] == [2, 1]
    results = list(read_results(output, run.name).values())
    ids = [start.id for start in record.starts]
    assert [ids.index(r.start or "") for r in results] == [0, 0, 0, 1, 1]
    whole = full_record(run.name, record, results)
    assert [start["answers"] for start in whole["starts"]] == [3, 2]
    assert whole["settings"] == run.describe()
    assert whole["totals"]["answers"] == 5
    assert whole["totals"]["ended"] >= record.starts[1].began
    assert json.loads(json.dumps(whole)) == json.loads(json.dumps(whole, allow_nan=False))
    (process,) = record.starts[0].processes
    assert process == environment_of(tiny)
    assert process.threads >= 1
    assert process.weights


def test_a_refusal_leaves_no_record(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    with pytest.raises(RefusedError):
        list(run_of(tiny, scheduler="fixed_quota:7").results(TASKS["arithmetic"].take(1), output))
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_finished_nothing_leaves_no_record(
    tiny: dllm.HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(run: Run, problems: Any) -> Any:
        raise dllm.NotEnoughMemoryError("full")

    monkeypatch.setattr(execute, "results", short)
    with pytest.raises(dllm.NotEnoughMemoryError):
        list(run_of(tiny).results(TASKS["arithmetic"].take(1), tmp_path / "rows.jsonl"))
    assert list(tmp_path.iterdir()) == []


def test_other_weights_never_go_on_with_a_run(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    problems, output = TASKS["arithmetic"].take(3), tmp_path / "rows.jsonl"
    list(run_of(tiny).results(problems[:1], output))
    trained = dllm.load("tiny")
    trained.network.embedding.weight.data[-1, -1] += 0.5
    other = run_of(trained)
    assert (other.there(problems, output), run_of(tiny).there(problems, output)) == (0, 1)
    assert {one.run for one in other.results(problems, output)} == {other.name}
    assert other.beside(output) == [run_of(tiny).name]
    assert len(list(run_of(tiny).results(problems, output))) == 3
    assert len(read_results(output, other.name)) == len(read_results(output)) == 3


def test_the_digest_is_of_all_tensors() -> None:
    class Holder:
        def __init__(self) -> None:
            self.module: Any = nn.Linear(3, 70_000, bias=True)

    holder: Any = Holder()
    first = weights_digest(holder)
    assert weights_digest(holder) == first
    holder.module.bias.data[-1] += 1
    assert weights_digest(holder) != first
    holder.module = len
    assert weights_digest(holder) is None


def test_a_checkout_without_git_has_no_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.commit.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.commit() is None
    environment.commit.cache_clear()


@pytest.mark.parametrize("content", ["", "[]", '{"runs": 3}', '{"runs": {"a": {"starts": 1}}}'])
def test_a_damaged_record_is_an_error_and_stays(
    tiny: dllm.HostedModel, tmp_path: Path, content: str
) -> None:
    output = tmp_path / "rows.jsonl"
    beside(output).write_text(content)
    with pytest.raises(ValueError, match=r"rows\.runs\.json is not a record of runs .* move it"):
        list(run_of(tiny).results(TASKS["arithmetic"].take(1), output))
    assert beside(output).read_text() == content
    assert not output.exists()


def test_a_record_is_replaced_in_one_piece(
    tiny: dllm.HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "rows.jsonl"
    run = run_of(tiny)
    record = run.record([])
    note(output, "first", record)

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        note(output, "second", record)
    monkeypatch.undo()
    assert read_records(output) == {"first": record}
    note(output, "second", record)
    assert list(read_records(output)) == ["first", "second"]


def test_totals_are_sums_over_all_results() -> None:
    made = [
        result("a", valid_tokens=10, raw_tokens=16, forwards=2, row_forwards=3, seconds=1.0),
        result("b", valid_tokens=30, raw_tokens=32, forwards=3, row_forwards=3, seconds=4.0),
    ]
    batch: dict[str, Any] = {"rows_fed": 4.0, "latency": 5.0, "peak_memory": 7, "finished": "1"}
    known = [
        replace(made[0], **batch, prefill_seconds=0.5, finish_reason="length", extracted=False),
        replace(made[1], **{**batch, "latency": 9.0, "finished": "2"}, prefill_seconds=1.0),
    ]
    totals = totals_of(known)
    assert (totals["answers"], totals["forwards"]) == (2, 5)
    assert (totals["valid_tokens"], totals["raw_tokens"]) == (40, 48)
    assert (totals["row_forwards"], totals["rows_fed"], totals["tokens_fed"]) == (6, 8.0, 2.0)
    assert (totals["tokens_per_forward"], totals["raw_tokens_per_forward"]) == (8.0, 48 / 5)
    assert (totals["tokens_per_second"], totals["tokens_per_second_mean"]) == (8.0, (10 + 7.5) / 2)
    assert totals["padding"] is None  # nobody noted what was needed
    needed = [replace(known[0], tokens_needed=0.5), replace(known[1], tokens_needed=1.0)]
    assert totals_of(needed)["padding"] == 0.25
    named = {"scheduler": {"name": "threshold"}, "cache": {"name": "none"}}
    summary = summarise([replace(one, settings=named) for one in needed])
    assert summary.padding == 0.25
    assert "25.0% of what was fed was padding" in notes_of(summary)
    assert totals["tokens_per_second_decode"] == 40 / 3.5
    assert totals["tokens_per_second_decode_mean"] == (10 / 0.5 + 30 / 3.0) / 2
    assert (totals["latency_p50"], totals["latency_p95"], totals["peak_memory"]) == (5.0, 9.0, 7)
    assert (totals["early_stops"], totals["truncated"], totals["not_extracted"]) == (1, 1, 1)
    assert totals["ended"] == "2"
    old = totals_of(made)  # lines of before these were written
    assert old["prefill_seconds"] is old["tokens_per_second_decode"] is old["latency_p50"] is None
    assert (old["not_extracted"], old["ended"], old["peak_memory"]) == (None, None, None)
    assert old["tokens_per_second"] == 8.0
    mixed = totals_of([known[0], made[1]])
    assert mixed["prefill_seconds"] is mixed["tokens_per_second_decode"] is None
    with pytest.raises(ValueError, match="no results"):
        totals_of([])


def test_percentiles_are_values_that_were_measured() -> None:
    latencies = [float(n) for n in range(1, 21)]
    totals = totals_of([result(str(n), latency=n) for n in latencies])
    assert totals["latency_p50"] == 10.0 <= statistics.median(latencies)
    assert totals["latency_p95"] == 19.0
    assert totals_of([result("a", latency=3.0)])["latency_p95"] == 3.0


def test_result_lines_have_what_the_totals_need(tiny: dllm.HostedModel) -> None:
    found: list[Result] = list(run_of(tiny, 3).results(TASKS["arithmetic"].take(5), None))
    for one in found:
        assert one.prefill_seconds is not None
        assert one.latency is not None
        assert 0 < one.prefill_seconds < one.seconds <= one.latency
        assert one.rows_fed is not None
        assert one.rows_fed >= one.forwards
        assert one.peak_memory is None
        assert one.finished is not None


def test_the_record_covers_a_resumed_run_in_json_and_yaml(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    command = ["eval", "--batch-size", "2", "--output", str(output), "-v", "ssd:2"]
    assert CliRunner().invoke(app, [*command, "--limit", "2"]).exit_code == 0
    done = CliRunner().invoke(app, [*command, "--limit", "5", "--json"])
    (row,) = json.loads(done.stdout)["rows"]
    assert row["verifier"] == "ssd:2"
    assert [start["answers"] for start in row["record"]["starts"]] == [2, 3]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    totals = row["record"]["totals"]
    assert totals["answers"] == len(lines) == 5
    assert totals["forwards"] == sum(line["forwards"] for line in lines)
    assert row["record"]["accuracy"]["correct"] == sum(line["correct"] for line in lines)
    shown = CliRunner().invoke(app, [*command, "--limit", "5", "--record"]).stdout
    assert yaml.safe_load(shown[shown.index("run: ") :])["totals"] == totals


def test_a_record_is_printed_of_results_that_no_file_has() -> None:
    command = ["eval", "--limit", "1", "-n", "8", "--choice", "8", "--choice", "98", "--record"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.exception
    shown = yaml.safe_load(done.stdout[done.stdout.index("run: ") :])
    assert shown["settings"]["other"] == {"constraint": '{"choice": ["8", "98"]}'}
    assert shown["starts"][0]["processes"][0]["torch"] == torch.__version__


def test_lines_without_the_new_fields_are_read(tmp_path: Path) -> None:
    old = {k: v for k, v in vars(result("a")).items() if k not in ("start", "latency", "extracted")}
    (tmp_path / "rows.jsonl").write_text(json.dumps(old) + "\n")
    append(tmp_path / "rows.jsonl", [result("b", latency=1.0)])
    assert [r.latency for r in read_results(tmp_path / "rows.jsonl").values()] == [None, 1.0]
