"""`--config FILE`: settings of a file, under the options of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dllm
from tests.support.commands import Inside

TOM = "tom has 53 pens. tom loses 3. how many pens does tom have?"
WRITTEN = {"scheduler": "threshold:0.8", "cache": "dual", "gen_length": 32, "block_length": 8}


@pytest.fixture(params=["mine.json", "mine.yaml"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    yaml = "# how we decode\nscheduler: {name: threshold, threshold: 0.8}\ncache: dual\n"
    yaml += "gen_length: 32\nblock_length: 8\n"
    path.write_text(json.dumps(WRITTEN) if path.suffix == ".json" else yaml, encoding="utf-8")
    return path


def test_generate_takes_settings_of_a_file_and_options_win(file: Path, inside: Inside) -> None:
    model = dllm.load("tiny")
    for flags, more in [
        ([], {}),
        (["-n", "16", "-c", "none"], {"max_new_tokens": 16, "cache": "none"}),
        (["--set", "gen_length=24"], {"max_new_tokens": 24}),
        (["--set", "threshold=0.5"], {"scheduler": "threshold:0.5"}),
    ]:
        done = inside("generate", TOM, "--config", str(file), *flags, "--json").json
        settings = dllm.Settings.from_json(WRITTEN)
        expected = dllm.generate(model, [TOM], settings, **more)  # type: ignore[arg-type]
        assert done["sequences"] == [list(row) for row in expected.sequences]
        assert done["metrics"]["tokens_fed"] == expected.metrics.tokens_fed


def test_what_settings_write_is_what_a_command_reads(tmp_path: Path, inside: Inside) -> None:
    settings = dllm.Settings(scheduler="klass", max_new_tokens=24, block_length=8, seed=3)
    path = tmp_path / "mine.json"
    path.write_text(settings.to_json(), encoding="utf-8")
    done = inside("generate", TOM, "--config", str(path), "--json").json
    expected = dllm.generate(dllm.load("tiny"), [TOM], settings)
    assert done["sequences"] == [list(row) for row in expected.sequences]
    assert done["metrics"]["tokens_fed"] == expected.metrics.tokens_fed


def test_chat_takes_settings_of_a_file(file: Path, inside: Inside) -> None:
    done = inside("chat", "--config", str(file), stdin=f"{TOM}\n/set block_size=16\n/set\n")
    assert done.returncode == 0, done.stderr
    assert "53-3=50" in done.stdout
    assert "gen_length=32" in done.stderr
    assert "block_size=16" in done.stderr


def test_results_say_the_settings_and_not_the_file(
    file: Path, tmp_path: Path, inside: Inside
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    common = ["--limit", "3", "--json", "--output"]
    assert inside("eval", "--config", str(file), *common, str(first)).returncode == 0
    flags = ["-s", "threshold:0.8", "-c", "dual", "-n", "32", "-b", "8"]
    assert inside("eval", *flags, *common, str(second)).returncode == 0
    runs = [
        {json.loads(line)["run"] for line in p.read_text().splitlines()} for p in (first, second)
    ]
    assert runs[0] == runs[1]
    assert all(file.name not in path.read_text() for path in tmp_path.rglob("first*"))
    other = inside("eval", "--config", str(file), "-s", "factor", *common, str(first))
    assert other.returncode == 0, other.stderr
    assert {json.loads(line)["run"] for line in first.read_text().splitlines()} > runs[0]


def test_the_batch_size_of_the_command_line_wins(tmp_path: Path, inside: Inside) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("max_num_seqs: 2\nmax_new_tokens: 16\n", encoding="utf-8")
    for flags, rows in [([], 2), (["--batch-size", "3"], 3)]:
        output = tmp_path / f"{rows}.jsonl"
        done = inside(
            "eval", "--config", str(path), *flags, "--limit", "3", "--output", str(output)
        )
        assert done.returncode == 0, done.stderr
        (record,) = [p for p in tmp_path.rglob(f"{rows}*") if p != output]
        assert f'"batch_size": {rows}' in record.read_text()


@pytest.mark.parametrize("command", [["generate", TOM], ["chat"], ["eval"]])
@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '{"max_new_token": 3}', "unknown setting max_new_token=3: did you mean"),
        ("a.json", '{"cache": "dual", "cache": "none"}', "the key 'cache' stands twice"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "[]", "settings=[] must be an object with names"),
        ("a.yaml", "cache: dual\ncache: none", "line 2: the key 'cache' stands twice"),
        ("a.yaml", "gen_length: 3\nmax_new_tokens: 4", "sets max_new_tokens a second time"),
        ("a.yaml", "temperature: -1", "temperature=-1 must be"),
        ("a.yaml", "scheduler: thresold", "unknown scheduler 'thresold': did you mean 'threshold'"),
        ("a.yaml", "3: 4", "unknown setting 3=4"),
        ("a.yaml", "[1", "is not YAML"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(
    command: list[str], name: str, text: str, says: str, tmp_path: Path, inside: Inside
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    done = inside(*command, "--config", str(path), "--model", "/no/such/model")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr
    assert says in done.stderr


def test_a_file_that_is_not_there(tmp_path: Path, inside: Inside) -> None:
    for path, says in [(tmp_path / "no.yaml", "there is no such file"), (tmp_path, "is a folder")]:
        done = inside("generate", TOM, "--config", str(path))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert says in done.stderr
        assert str(path) in done.stderr
