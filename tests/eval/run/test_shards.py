"""Part files become one results file: nothing lost, nothing twice, one writer at a time."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.eval.run import execute
from dllm.eval.run import processes as shards
from dllm.eval.run.processes import (
    Processes,
    Tail,
    absorb,
    find_processes,
    find_shards,
    shard_of,
    split,
)
from dllm.eval.run.results import BusyError, Writer, append, mend, read_lines, read_results, writing
from dllm.eval.run.run import Run
from dllm.eval.tasks import TASKS
from dllm.eval.tasks.task import Problem
from dllm.settings import resolve
from tests.support.runs import result


def problem(name: str, prompt: str) -> Problem:
    return Problem(name, prompt, "", "")


def ids(path: Path) -> list[str]:
    return [result.id for result in read_lines(path)]


def test_parts_are_put_in_the_order_of_one_process(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    append(output, [result("a", "1")])
    append(shard_of(output, 0), [result("b", "22"), result("e", "55555")])
    append(shard_of(output, 11), [result("c", "22"), result("d", "4444")])
    problems = [problem("e", "55555"), problem("c", "22"), problem("b", "22"), problem("d", "4444")]
    with writing(output) as writer:
        absorb(writer, problems)
    assert ids(output) == ["a", "c", "b", "d", "e"]
    assert not find_shards(output)


def test_a_kill_between_the_lines_and_the_removal_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "rows.jsonl"
    append(shard_of(output, 0), [result("a"), result("b")])
    append(shard_of(output, 1), [result("c")])

    def killed(writer: Writer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "remove", killed)
    with pytest.raises(KeyboardInterrupt), writing(output) as writer:
        absorb(writer, [])
    monkeypatch.undo()
    with output.open("a") as file:
        file.write('{"run": "r", "id": "cut')
    assert len(find_shards(output)) == 2
    with writing(output) as writer:
        absorb(writer, [])
        writer.append([result("d")])
    assert ids(output) == ["a", "b", "c", "d"]
    assert not find_shards(output)


def test_lines_that_were_being_appended_when_a_kill_came_come_once(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    append(shard_of(output, 0), [result("a"), result("b")])
    whole = "".join(json.dumps(asdict(result(name))) + "\n" for name in "ab")
    output.write_text(whole[: len(whole) - 40])
    with writing(output) as writer:
        absorb(writer, [])
    assert output.read_text() == whole


def test_a_part_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    append(shard_of(output, 0), [result("a")])
    append(shard_of(output, 1), [result("b")])
    with writing(shard_of(output, 1)), writing(output) as writer:
        with pytest.raises(BusyError, match=r"another process is writing .*rows.jsonl.part1"):
            absorb(writer, [])
        assert not output.exists()
    assert len(find_shards(output)) == 2


def test_other_files_beside_are_no_parts(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    for name in (
        "rows.jsonl.part",
        "rows.jsonl.part1.bak",
        "rows.jsonl.partx",
        "xrows.jsonl.part1",
    ):
        (tmp_path / name).write_text("mine")
    assert find_shards(output) == find_shards(tmp_path / "no" / "rows.jsonl") == []


def test_a_tail_reads_whole_lines_once(tmp_path: Path) -> None:
    shard, missing = tmp_path / "rows.jsonl.part1", tmp_path / "rows.jsonl.part2"
    tail = Tail([shard, missing])
    assert tail.new() == []
    append(shard, [result("a"), result("b")])
    line = json.dumps(asdict(result("é")), ensure_ascii=False) + "\n"
    with shard.open("a", encoding="utf-8") as file:
        file.write(line[:30])
    assert [r.id for r in tail.new()] == ["a", "b"]
    assert tail.new() == []
    with shard.open("a", encoding="utf-8") as file:
        file.write(line[30:])
    append(missing, [result("c")])
    assert [r.id for r in tail.new()] == ["é", "c"]


def test_parts_are_disjoint_whole_and_even() -> None:
    problems = [problem(str(n), "x" * (n * 7 % 11)) for n in range(23)]
    for count in (1, 2, 5, 30):
        parts = split(problems, count)
        assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in problems)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        for part in parts:
            lengths = [len(p.prompt) for p in part]
            assert lengths == sorted(lengths)


def test_a_file_has_one_writer(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    output, problems = tmp_path / "rows.jsonl", TASKS["arithmetic"].take(2)
    run = Run(tiny, TASKS["arithmetic"], resolve(tiny.defaults, None, {}), 1)
    going: Any = run.results(problems, output)
    next(going)
    with pytest.raises(BusyError, match="wait for it, stop it, or choose another --output"):
        list(run.results(problems, output))
    going.close()
    assert len(list(run.results(problems, output))) == 2
    assert len(output.read_text().splitlines()) == 2


def test_parts_of_a_killed_launch_are_taken_over(
    tiny: dllm.HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, problems = tmp_path / "rows.jsonl", TASKS["arithmetic"].take(6)
    run = Run(tiny, TASKS["arithmetic"], resolve(tiny.defaults, None, {}), 2)
    whole = {r.id: r for r in run.results(problems, None)}
    for rank in (0, 3):
        append(shard_of(output, rank), [whole[problems[rank].id], whole[problems[rank + 1].id]])
    asked: list[str] = []
    original = execute.results

    def counted(run: Run, batch: Any) -> Any:
        asked.extend(p.id for p in batch)
        return original(run, batch)

    monkeypatch.setattr(execute, "results", counted)
    assert {r.id: r.text for r in run.results(problems, output)} == {
        name: r.text for name, r in whole.items()
    }
    assert sorted(asked) == sorted([problems[2].id, problems[5].id])
    assert len(ids(output)) == 6
    assert not find_shards(output)


@pytest.mark.parametrize("content", ["hello", "a\nb", '{"id": 3}', '{"run": "x"}'])
def test_what_is_no_result_is_never_cut_off(tmp_path: Path, content: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(content)
    if not content.endswith('"x"}'):
        mend(file)
        assert file.read_text() == content
        with pytest.raises(ValueError, match="is not a result"):
            read_results(file)
    else:  # a line that lost its end, as a kill leaves it
        assert read_results(file) == {}
        mend(file)
        assert file.read_text() == ""


@pytest.mark.parametrize("size", [10, 65_536, 65_537, 200_000])
def test_a_cut_line_of_any_length_is_dropped(tmp_path: Path, size: int) -> None:
    file = tmp_path / "rows.jsonl"
    append(file, [result("a"), result("b", text="y" * size)])
    kept = file.read_bytes()
    cut = ('{"run": "r", "text": "' + "x" * size).encode()[:size]
    file.write_bytes(kept + cut)
    mend(file)
    assert file.read_bytes() == kept
    mend(file)
    assert file.read_bytes() == kept


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    alone = find_processes()
    assert (alone.rank, alone.count, alone.is_main) == (0, 1, True)
    assert alone.device(None) is None
    assert alone.tell("x") == "x"
    assert alone.share("x") == ["x"]
    assert list(alone.meet()) == []
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert find_processes() == alone


def test_several_processes_need_a_file(tiny: dllm.HostedModel) -> None:
    settings = resolve(tiny.defaults, None, {})
    run = Run(tiny, TASKS["arithmetic"], settings, 2, Processes(0, 4))
    with pytest.raises(ValueError, match="4 processes need --output FILE"):
        list(run.results(TASKS["arithmetic"].take(1), None))


Made = Callable[[str], Exception]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BusyError("x"), "OSError"),
        (dllm.NotEnoughMemoryError("x"), "NotEnoughMemoryError"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), "ValueError"),
    ],
)
def test_an_error_is_told_as_the_nearest_kind(error: Exception, kind: str) -> None:
    told = pickle.loads(pickle.dumps(shards.told(error)))
    assert type(told).__name__ == kind
    assert str(told) == str(error)
    assert shards.by_length([]) == []
