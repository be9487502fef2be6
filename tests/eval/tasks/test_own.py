"""Own data from a file: formats, fields, judges, and what is said where something is wrong."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dllm.cli.main import main
from dllm.eval.tasks import Task, find_task, own
from dllm.eval.tasks.task import TaskOptions
from tests.support.answers import answer_with

ROWS = [
    {"question": "tom has 53 pens. tom loses 3. how many pens does tom have?", "answer": "50"},
    {"question": "ann has 12 cups. ann buys 7 more. how many cups does ann have?", "answer": "19"},
    {"question": "sam has 9 cards. sam loses 4. how many cards does sam have?", "answer": "5"},
]
PICKS: list[dict[str, Any]] = [
    {"question": "Sky?", "choices": ["red", "blue"], "answer": "B"},
    {"question": "Grass?", "choices": ["green", "pink"], "answer": 0},
    {
        "question": "Snow?",
        "choices": {"text": ["black", "white"], "label": ["1", "2"]},
        "answer": "white",
    },
]


def lines(rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def task_of(file: Path, content: str, **options: Any) -> Task:
    file.write_text(content, encoding="utf-8")
    return find_task("own", TaskOptions(file, **options))


def told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["dllm", "eval", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    written = capsys.readouterr()
    return int(ended.value.code or 0), written.out, written.err


def test_a_file_is_measured_and_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, output = tmp_path / "mine.jsonl", tmp_path / "rows.jsonl"
    file.write_text(lines(ROWS))
    command = ["--data", str(file), "-n", "32", "--output", str(output), "--json"]
    code, out, err = told(monkeypatch, capsys, *command, "--limit", "2")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert (row["problems"], row["accuracy"]) == (2, 1.0)
    code, out, err = told(monkeypatch, capsys, *command)
    (row,) = json.loads(out)["rows"]
    assert (row["problems"], row["accuracy"]) == (3, 1.0)
    assert len(output.read_text().splitlines()) == 3  # two were there
    file.write_text(lines([*ROWS[:2], {**ROWS[2], "answer": "6"}]))
    (row,) = json.loads(told(monkeypatch, capsys, *command)[1])["rows"]
    assert row["correct"] == 2
    assert len(output.read_text().splitlines()) == 6  # other data are another run


def test_the_same_rows_in_any_format(tmp_path: Path) -> None:
    expected = task_of(tmp_path / "a.jsonl", lines(ROWS))
    cells = "question,answer\n" + "".join(f'"{r["question"]}",{r["answer"]}\n' for r in ROWS)
    for name, content in (
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.csv", cells),
        ("b.csv", "\ufeff" + cells.replace("\n", "\r\n")),
        ("a.tsv", cells.replace(",", "\t")),
        ("b.jsonl", "\ufeff\n" + lines(ROWS).replace("\n", "\r\n\n")),
        ("c.jsonl", lines(ROWS).replace('"50"', "50")),
        ("a.txt", lines(ROWS)),
    ):
        task = task_of(tmp_path / name, content)
        assert task.take(9) == expected.take(9), name
        assert task.options == expected.options
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(cells.encode()))
    assert find_task("own", TaskOptions(packed)).take(9) == expected.take(9)


def test_questions_that_come_twice_are_two_problems(tmp_path: Path) -> None:
    twice = [ROWS[0], {**ROWS[0], "answer": "51"}, ROWS[0]]
    assert len(task_of(tmp_path / "a.jsonl", lines(twice)).take(9)) == 3


def test_fields_by_common_names_and_by_option(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for question, answer in (
        ("prompt", "target"),
        ("problem", "expected"),
        ("instruction", "output"),
    ):
        task = task_of(file, lines([{question: "a", answer: "b", "id": 3}]))
        assert [(p.prompt, p.answer) for p in task.take(1)] == [("a", "b")]
    task = task_of(
        file, lines([{"q": "a", "a": "1.50", "answer": 2}]), question_field="q", answer_field="a"
    )
    assert [(p.prompt, p.answer) for p in task.take(1)] == [("a", "1.50")]


def test_the_prompt_is_a_template(tmp_path: Path) -> None:
    rows, file = [{**PICKS[0], "topic": "colour"}], tmp_path / "a.jsonl"
    asked = {
        None: "Sky?\nA. red\nB. blue",
        "{topic}: {question}\\nA:": "colour: Sky?\nA:",
        "{{x}} {question}\n{choices}": "{x} Sky?\nA. red\nB. blue",
    }
    for template, prompt in asked.items():
        (problem,) = task_of(file, lines(rows), template=template).take(1)
        assert problem.given == prompt
    (problem,) = task_of(file, lines(rows), style="chat", template="{question}").take(1)
    assert problem.given == [{"role": "user", "content": "Sky?"}]


@pytest.mark.parametrize(
    ("answers", "judge"),
    [
        (["5", "1,250"], "number"),
        (["$5", "1/2", "50%"], "number"),
        (["A", "C"], "choice"),
        (["5", "route 66"], "exact"),
        (["yes", "no"], "exact"),
    ],
)
def test_the_judge_is_chosen_by_the_answers(tmp_path: Path, answers: list[str], judge: str) -> None:
    rows = [{"question": "a", "answer": answer} for answer in answers]
    task = task_of(tmp_path / "a.jsonl", lines(rows))
    assert task.options["judge"] == judge
    assert judge in task.description
    for problem in task.take(9):
        assert task.is_correct(problem, problem.response)
        assert not task.is_correct(problem, "")


@pytest.mark.parametrize(
    ("judge", "answer", "text", "right"),
    [
        ("exact", "5", " 5\n", True),
        ("exact", "5", "It is 5.", False),
        ("exact", "Yes", "yes", False),
        ("number", "5", "It is 5.", True),
        ("number", "1,250", "So $1250.00", True),
        ("number", "5 apples", "five", True),
        ("number", "5", "It is 6.", False),
        *(
            ("choice", "B", text, True)
            for text in (
                "B",
                "(B)",
                "B.",
                "**B**",
                "The answer is B.",
                "The answer is (B) blue.",
                "Answer: B",
                "\\boxed{B}",
                "\\boxed{\\text{B}}",
                "B) blue, not A) red",
                "A or B? The answer is B",
                "It is not red.\n\nB",
                "I choose (B).",
                "answer: **B**",
                "<think>A</think> B",
            )
        ),
        *(
            ("choice", "B", text, False)
            for text in (
                "A",
                "The answer is A, not B.",
                "Because",
                "A B",
                "\\boxed{A}",
                "Both",
            )
        ),
    ],
)
def test_judges(tmp_path: Path, judge: str, answer: str, text: str, right: bool) -> None:
    task = task_of(tmp_path / "a.jsonl", lines([{"question": "a", "answer": answer}]), judge=judge)
    (problem,) = task.take(1)
    assert task.is_correct(problem, text) is right


def test_choices_may_be_given_by_letter_number_and_text(tmp_path: Path) -> None:
    task = task_of(tmp_path / "a.jsonl", lines(PICKS))
    assert [problem.answer for problem in task.take(9)] == ["B", "A", "2"]
    sky, _, snow = task.take(9)
    assert task.is_correct(sky, "It is blue, I think.")
    assert not task.is_correct(sky, "Red or blue.")
    assert task.is_correct(snow, "(2)")
    other = [{**PICKS[0], "choices": ["grey", "blue"]}, *PICKS[1:]]
    changed = task_of(tmp_path / "b.jsonl", lines(other), template="{question}")
    assert (
        changed.options
        != task_of(tmp_path / "a.jsonl", lines(PICKS), template="{question}").options
    )


DEEP = "[" * 100_000 + "]" * 100_000
MISTAKES = [
    ("a.jsonl", "", (), "a.jsonl holds no records"),
    ("a.jsonl", "\n\n", (), "holds no records"),
    ("a.csv", "question,answer\n", (), "holds no records"),
    ("a.json", "[]", (), "holds no records"),
    (
        "a.jsonl",
        lines([ROWS[0], {"question": "b", "anser": "c"}]),
        (),
        "line 2 has no field 'answer': did you mean 'anser'",
    ),
    (
        "a.jsonl",
        '{"q": 1, "answer": 2}',
        (),
        "the fields are 'q', 'answer': name it with --question-field",
    ),
    (
        "a.jsonl",
        '{"question": "a", "prompt": "b", "answer": 2}',
        (),
        "may be any of question, prompt",
    ),
    (
        "a.jsonl",
        lines(ROWS),
        ("--answer-field", "anwser"),
        "line 1 has no field 'anwser': did you mean 'answer'",
    ),
    (
        "a.jsonl",
        '{"question": "a", "answer": 1, "answer": 2}',
        (),
        "line 1 is not valid JSON: the key 'answer' stands twice",
    ),
    ("a.csv", "question,answer,answer\na,b,c\n", (), "line 1 has the column 'answer' twice"),
    ("a.csv", "question,answer\na,b,c\n", (), "line 2 has 3 cells where the header has 2"),
    ("a.csv", 'question,answer\n"a,b\n', (), "is not a file of a table"),
    (
        "a.jsonl",
        '{"question": "a\\ud800", "answer": 1}',
        (),
        "line 1, field 'question' has half a character (U+D800)",
    ),
    ("a.jsonl", lines(ROWS) + '{"question": ' + DEEP + "}", (), "line 4 nests values deeper"),
    ("a.json", DEEP, (), "a.json nests values deeper"),
    ("a.json", lines(ROWS), (), "a.json is not valid JSON: Extra data"),
    ("a.json", '{"question": "a"}', (), "an object a line ends in .jsonl"),
    ("a.jsonl", json.dumps(ROWS), (), "line 1 must be an object"),
    ("a.jsonl", '{"question": "a", "answer": NaN}', (), "line 1 is not valid JSON: NaN"),
    (
        "a.jsonl",
        '{"question": "a", "answer": null}',
        (),
        "'answer' must be a text or a number, but is missing",
    ),
    ("a.jsonl", '{"question": "a", "answer": ["b"]}', (), "but is a list"),
    (
        "a.jsonl",
        lines([{"question": "a", "answer": "b"}]),
        ("--judge", "number"),
        "the answer 'b' is no number",
    ),
    (
        "a.jsonl",
        lines([{**PICKS[0], "answer": "C"}]),
        (),
        "the answer 'C' is none of the choices: it may be A, B",
    ),
    (
        "a.jsonl",
        lines(ROWS),
        ("--judge", "numbers"),
        "unknown judge 'numbers' of own: did you mean 'number'",
    ),
    ("a.jsonl", lines(ROWS), ("--style", "chta"), "did you mean 'chat'"),
    (
        "a.jsonl",
        lines(ROWS),
        ("--template", "{qestion}"),
        "has nothing for {qestion}: there are {question}",
    ),
    ("a.jsonl", lines(ROWS), ("--template", "{answer}"), "has nothing for {answer}"),
    ("a.jsonl", lines(ROWS), ("--template", "Q:"), "no place for the question: write {question}"),
    ("a.jsonl", lines(ROWS), ("--shots", "2"), "own data are asked as they are"),
    (
        "a.jsonl",
        lines(ROWS),
        ("--task", "gsm8k", "--judge", "exact"),
        "--judge: only the task 'own' has",
    ),
    (
        "a.jsonl",
        lines(ROWS),
        ("--task", "arithmetic"),
        "--data: the task 'arithmetic' makes its own",
    ),
]


@pytest.mark.parametrize(("name", "content", "more", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    content: str,
    more: tuple[str, ...],
    message: str,
) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    code, _, err = told(monkeypatch, capsys, "--data", str(file), *more)
    said = " ".join(err.split())
    assert (code, message in said) == (2, True), said
    assert "Traceback" not in said


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    for file, message in ((tmp_path, "is a folder"), (tmp_path / "no.csv", "no such file")):
        with pytest.raises(ValueError, match=message):
            find_task("own", TaskOptions(file))
    with pytest.raises(ValueError, match="name the file with --data FILE"):
        find_task("own", TaskOptions())
    (tmp_path / "a.jsonl").write_bytes('{"question": "ä"}'.encode("utf-16"))
    with pytest.raises(ValueError, match="is not a file of JSON lines: 'utf-8' codec"):
        find_task("own", TaskOptions(tmp_path / "a.jsonl"))


def test_results_say_what_was_stated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(lines(PICKS))
    answer_with(monkeypatch, lambda prompt: "The answer is B." if "Sky" in prompt else "no idea")
    output = tmp_path / "rows.jsonl"
    code, _, err = told(
        monkeypatch, capsys, "--data", str(tmp_path / "a.jsonl"), "--output", str(output)
    )
    assert code == 0, err
    kept = {row["id"]: row for row in map(json.loads, output.read_text().splitlines())}
    assert [kept[f"own-{n}"]["details"]["stated"] for n in range(3)] == ["B", None, None]
    assert [kept[f"own-{n}"]["extracted"] for n in range(3)] == [True, False, False]
    assert set(own.JUDGES) == {"exact", "number", "choice"}
