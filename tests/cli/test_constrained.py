"""`--regex`, `--json-schema`, `--grammar` and `--choice`: what answers are held to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.constraints import Choice, Grammar, JsonSchema, Regex
from tests.support.commands import Inside

TOM = "tom has 53 pens. tom loses 3. how many pens does tom have?"
WORKING = r"[0-9]{2}-[0-9]=[0-9]{2}; #### [0-9]{2}"
NUMBER = {"type": "integer", "minimum": 10, "maximum": 99}
SUM = 'start: N "-" N "=" N\nN: /[0-9]{1,2}/'


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("number.json").write_text(json.dumps(NUMBER), encoding="utf-8")
    Path("sum.lark").write_text(SUM, encoding="utf-8")
    return tmp_path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no command load a model."""

    def loaded(*given: Any) -> None:
        raise AssertionError("a model was loaded")

    for command in ("generate", "evaluate", "chat", "verify"):
        monkeypatch.setattr(f"dllm.cli.{command}.load_model", loaded)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("flags", "more"),
    [
        (["--regex", WORKING], {"constraint": Regex(WORKING)}),
        (
            ["--json-schema", "number.json", "--joint", "map"],
            {"constraint": JsonSchema(NUMBER), "joint": "map"},
        ),
        (["--grammar", "sum.lark"], {"constraint": Grammar(SUM)}),
        (
            ["--grammar", "sum.lark", "--grammar-method", "emptiness"],
            {"constraint": Grammar(SUM, method="emptiness")},
        ),
        (
            ["--choice", "tom", "--choice", "53-3=50"],
            {"constraint": Choice(["tom", "53-3=50"])},
        ),
        (["--set", "constraint={choice: [leo]}"], {"constraint": Choice(["leo"])}),
    ],
)
def test_generate_holds_answers_as_a_call_does(
    flags: list[str], more: dict[str, Any], inside: Inside
) -> None:
    done = inside("generate", TOM, "-n", "24", *flags, "--json").json
    expected = dllm.generate(dllm.load("tiny"), [TOM], max_new_tokens=24, **more)
    assert done["sequences"] == [list(row) for row in expected.sequences]
    assert done["texts"] == list(expected.texts or ())
    assert done["metrics"]["rows"][0]["forced"] == expected.metrics.rows[0].forced


@pytest.mark.usefixtures("files")
def test_generate_tells_forced_tokens_where_figures_are(inside: Inside) -> None:
    done = inside("generate", TOM, "--choice", "tom, ann, sue", "-n", "8")
    out = dllm.generate(
        dllm.load("tiny"), [TOM], max_new_tokens=8, constraint=Choice(["tom, ann, sue"])
    )
    forced = out.metrics.rows[0].forced
    assert forced > 0
    assert f" tokens ({forced} forced), " in done.stderr
    assert done.stdout == "tom, ann, sue\n"
    assert "forced" not in inside("generate", TOM, "-n", "8").stderr


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--regex", "[0-9"], r"--regex: regex '\[0-9' is invalid at position 0: unterminated"),
        (["--regex", r"[^\s\S]"], r"--regex: Regex\(.*\) accepts no text at all"),
        (["--regex", "(a|b)*a(a|b){30}"], r"--regex: Regex\(.*\) is too large"),
        (["--regex", r"(a)\1"], "--regex: .* a back reference"),
        (["--regex", "a", "--choice", "b"], "--regex and --choice both say .* keep one of them"),
        (["--grammar", "sum.lark", "--json-schema", "x"], "--json-schema and --grammar both say"),
        (["--json-schema", "none.json"], "--json-schema: there is no file 'none.json' in /"),
        (["--json-schema", "."], "--json-schema: . is a folder"),
        (["--json-schema", "sum.lark"], "--json-schema: sum.lark is not valid JSON: .* line 1"),
        (["--json-schema", "odd.json"], "--json-schema: JSON schema: .*'strin'"),
        (["--grammar", "number.json"], "--grammar: the grammar is invalid: .*line 1 column 1"),
        (["--grammar", "loop.lark", "--grammar-method", "emptiness"], "accepts no text at all"),
        (
            ["--grammar", "sum.lark", "--grammar-method", "all"],
            "--grammar: method='all' must be one of 'depth', 'emptiness', 'prefix'$",
        ),
        (["--grammar-method", "depth"], "--grammar-method=depth is of --grammar, which is not"),
        (["--joint", "maps"], "--joint='maps' must be 'confidence' or 'map'$"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "eval", "chat", "verify"])
def test_what_no_answer_can_be_held_to_is_refused_before_a_model_is_loaded(
    flags: list[str], said: str, command: str, files: Path, inside: Inside
) -> None:
    (files / "loop.lark").write_text('start: "a" start', encoding="utf-8")
    (files / "odd.json").write_text('{"type": "strin"}', encoding="utf-8")
    words = ["generate", TOM] if command == "generate" else [command]
    done = inside(*words, *flags)
    assert done.returncode == 2
    assert re.search(said, " ".join(done.stderr.split())), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--regex", "[0-9]{30}", "-n", "16"],
            "takes at least 30 tokens, and there are 16 slots for it: give max_new_tokens=30",
        ),
        (["--regex", "[0-9]", "--stop", "b"], "constraint refuses stop=('b',)"),
        (["--regex", "[0-9]", "-s", "lopa"], "constraint refuses scheduler 'lopa'"),
        (["--joint", "map"], "joint='map' chooses among texts that a constraint allows"),
        (["--regex", "[0-9]", "-t", "1", "--joint", "map"], "joint='map' takes the most probable"),
        (["--regex", "a", "--set", "constraint={regex: b}"], "constraint is given twice"),
        (["--set", "constraint={regex: '('}"], "constraint: regex '(' is invalid at position 0"),
        (["--set", "constraint=[0-9]+"], "is not a YAML value"),
        (
            ["--set", "constraint=x+"],
            "constraint='x+' must be a Constraint, or a mapping with one of regex",
        ),
    ],
)
def test_what_does_not_go_together_is_said(flags: list[str], said: str, inside: Inside) -> None:
    done = inside("generate", TOM, *flags)
    assert done.returncode == 2
    assert said in done.stderr


def test_what_python_warns_about_is_one_line(inside: Inside) -> None:
    done = inside("generate", TOM, "--regex", "[[a-z]", "-n", "4")
    assert done.stderr.splitlines()[0] == "warning: --regex: Possible nested set at position 1"


# Files of prompts, and results.


@pytest.mark.usefixtures("files")
def test_a_file_of_answers_goes_on_only_with_the_same_constraint(inside: Inside) -> None:
    Path("prompts.txt").write_text(f"{TOM}\ncopy: tom.\n", encoding="utf-8")
    Path("same.json").write_text(json.dumps(NUMBER, indent=4), encoding="utf-8")
    command = ["generate", "--prompts", "prompts.txt", "--output", "out.jsonl", "-n", "8"]
    assert inside(*command, "--json-schema", "number.json").returncode == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    assert all(re.fullmatch("[1-9][0-9]", line["text"]) for line in lines)
    prompts, held = [TOM, "copy: tom."], JsonSchema(NUMBER)
    out = dllm.generate(dllm.load("tiny"), prompts, max_new_tokens=8, constraint=held)
    forced = {line["number"]: line["forced"] for line in lines}
    assert forced == {n: row.forced for n, row in enumerate(out.metrics.rows, start=1)}
    assert "2 of 2 were there" in inside(*command, "--json-schema", "same.json").stderr
    Path("same.json").write_text(json.dumps({**NUMBER, "maximum": 98}), encoding="utf-8")
    for flags in (["--json-schema", "same.json"], ["--regex", "[1-9][0-9]"], []):
        done = inside(*command, *flags)
        assert done.returncode == 2
        assert "holds answers of another model or other settings" in done.stderr


@pytest.mark.usefixtures("files")
def test_a_file_of_prompts_has_one_for_each_whatever_order_they_are_decoded_in(
    inside: Inside,
) -> None:
    Path("prompts.txt").write_text(f"{TOM}\ncopy: tom.\n{TOM}\n", encoding="utf-8")
    words = ["tom", "ann", "sue"]
    held = ", ".join(f"{{choice: [{word}]}}" for word in words)
    command = ["generate", "--prompts", "prompts.txt", "-n", "8", "--set"]
    lines = inside(*command, f"constraint=[{held}]").lines
    assert {line["number"]: line["text"] for line in lines} == dict(enumerate(words, start=1))
    done = inside(*command, "constraint=[{choice: [tom]}, null]")
    assert "constraint has 2 entries and there are 3 prompts" in done.stderr


@pytest.mark.usefixtures("files")
def test_runs_that_differ_in_their_constraint_are_two(inside: Inside) -> None:
    command = ["eval", "--limit", "2", "-n", "16", "--output", "rows.jsonl"]
    first, second = (f"{'[0-9]' * 20}{end}|[0-9]" for end in ("1", "2"))  # as far as str shows
    for pattern in (first, second):
        assert inside(*command, "--regex", pattern).returncode == 0
    again = inside(*command, "--regex", first)
    assert "2 of 2 were there already" in again.stderr
    assert "held to Regex([0-9]" in " ".join(again.stdout.split())
    runs = json.loads(Path("rows.runs.json").read_text("utf-8"))["runs"]
    texts = [json.loads(run["settings"]["other"]["constraint"]) for run in runs.values()]
    assert texts == [{"regex": first}, {"regex": second}]
    lines = [json.loads(line) for line in Path("rows.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 4
    assert all(re.fullmatch("[0-9]", line["text"]) for line in lines)
    done = inside("compare", "rows.jsonl")
    assert f'threshold / none / {{"regex": "{first[:40]}' in done.stderr
    names = list(runs)
    compared = inside("compare", "rows.jsonl", "--first", names[0], "--second", names[1])
    assert compared.returncode == 0


@pytest.mark.usefixtures("files")
def test_a_traced_row_is_replayed(inside: Inside) -> None:
    flags = ["--choice", "tom, ann", "-n", "8", "--trace", "steps.jsonl"]
    assert inside("generate", TOM, *flags).returncode == 0
    done = inside("trace", "steps.jsonl")
    assert "tom, ann<eos>" in re.sub(r"[\[\]]", "", done.stdout)
    assert inside("trace", "steps.jsonl", "--html", "steps.html").returncode == 0
    assert Path("steps.html").stat().st_size > 1000


def test_verify_compares_under_a_constraint(inside: Inside) -> None:
    found = inside("verify", "--limit", "2", "-n", "16", "--regex", "[0-9+=-]+", "--json").json
    assert found["same_rows"] == found["num_prompts"] == 2


def test_cache_error_says_why_not(inside: Inside) -> None:
    done = inside("cache-error", "--limit", "1", "--set", "constraint={regex: a}", "-c", "dual")
    assert done.returncode == 2
    assert "leave constraint out" in done.stderr


def test_a_conversation_is_held_to_it(inside: Inside) -> None:
    done = inside("chat", "--choice", "tom, ann", stdin=f"{TOM}\n")
    assert done.stdout == "tom, ann\n"
