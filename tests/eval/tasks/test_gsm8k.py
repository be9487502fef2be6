"""GSM8K: prompts as published, extraction on tricky texts, both scores in each result."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dllm
from dllm.cli.main import main
from dllm.eval.run.results import RefusedError, read_results
from dllm.eval.run.run import Run
from dllm.eval.run.summary import summarise
from dllm.eval.tasks import Task, find_task, gsm8k
from dllm.eval.tasks.task import Problem, TaskOptions
from dllm.settings import resolve
from tests.support import DATA
from tests.support.answers import answer_with

PROBLEMS = DATA / "gsm8k.jsonl"
EXAMPLES = PROBLEMS.with_name("gsm8k_examples.jsonl")
FEWSHOT, SENTENCE = gsm8k.STYLES["fewshot"], gsm8k.STYLES["zeroshot"]


def task_of(style: str = "zeroshot", data: Path = PROBLEMS, shots: int | None = None) -> Task:
    return find_task("gsm8k", TaskOptions(data, style, EXAMPLES, shots))


def run_of(model: dllm.HostedModel, task: Task) -> Run:
    return Run(model, task, resolve(model.defaults, None, {}), 2)


# text, strict number after hashes, flexible number
HASHES = [
    ("48/2 = 24\n#### 72", "72", "72"),
    ("#### 1,250", "1,250", "1,250"),
    ("#### 72.", "72.", "72."),
    ("#### -5 degrees", "-5", "-5"),
    ("#### $18", None, "$18"),  # strict takes no sign
    ("#### 5 and then #### 6", "5", "6"),  # the first against the last
    ("####72", None, "72"),  # the blank is a part of the pattern
    ("it is 3, or 4", None, "4"),
    ("it is 3 , or more .", None, "3"),  # a sign alone is no number
    ("she pays $1,234.50.", None, "$1,234.50."),
    ("5-3=2", None, "2"),
    ("no number at all", None, None),
    ("", None, None),
    ("the end...", None, "..."),  # lm-eval takes it too
]
# text, strict number in a sentence
SENTENCES = [
    ("The answer is 18.", "18"),
    ("The answer is 18. So", "18."),
    ("The answer is 1,250 dollars.", "1,250"),
    ("The answer is -5.\nThe answer is 6.", "-5"),
    ("The answer is 18", "1"),  # the pattern wants one more character and gives back a digit
    ("The answer is $18.", None),
    ("the answer is 18.", None),
    ("The answer is seven.", None),
]


@pytest.mark.parametrize(("text", "strict", "flexible"), HASHES)
def test_numbers_after_hashes(text: str, strict: str | None, flexible: str | None) -> None:
    assert gsm8k.extract_strict(FEWSHOT, text) == strict
    assert gsm8k.extract_flexible(text) == flexible


@pytest.mark.parametrize(("text", "strict"), SENTENCES)
def test_numbers_in_sentences(text: str, strict: str | None) -> None:
    assert gsm8k.extract_strict(SENTENCE, text) == strict


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        *(("$1,234.50.", "1234.50"), ("72.", "72"), ("-1,250", "-1250"), ("...", "..")),
        *(("x\ny #### 7", "7"), ("18", "18"), ("$", "")),
    ],
)
def test_what_is_ignored_in_a_number(number: str, expected: str) -> None:
    assert gsm8k.normalised(number) == expected


@pytest.mark.parametrize(
    ("text", "answer", "strict", "flexible", "numeric"),
    [
        ("#### 72", "72", True, True, True),
        ("#### 72.00", "72", False, False, True),
        ("#### 72 rolls, of 80", "72", True, False, True),
        ("so $72.", "72", False, True, True),
        ("#### 1,250\n\nQuestion: what is 1+1?\nAnswer: #### 2", "1250", True, True, True),
        ("#### 72<|im_end|>#### 3", "72", True, True, True),
        ("#### 72</s>3 Question: 4", "72", True, True, True),
        ("...", "72", False, False, False),
        ("none", "72", False, False, False),
    ],
)
def test_scores(text: str, answer: str, strict: bool, flexible: bool, numeric: bool) -> None:
    said = gsm8k.judge(FEWSHOT, Problem("a", "", "", answer), text)
    expected = {"strict": strict, "flexible": flexible, "numeric": numeric}
    assert {name: said.details[name] for name in expected} == expected
    assert said.correct is flexible


def test_gold_answers() -> None:
    assert [problem.answer for problem in task_of().take(9)] == ["72", "1250", "-5", "7"]
    with pytest.raises(ValueError, match="must end with ####"):
        gsm8k.gold("it is 5")
    for answer in ("####", "#### none", "#### ?", "#### $"):
        with pytest.raises(ValueError, match="must end with #### and a number"):
            gsm8k.gold(answer)


def test_a_gold_that_is_no_number_is_reported_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    lines = [*PROBLEMS.read_text().splitlines()[:2], '{"question": "a", "answer": "#### many"}']
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"own.jsonl problem 3: an answer must end .* '#### many'"):
        task_of(data=file)


QUESTION = "Three friends share 21 marbles equally. How many does each of them get?"
ROPE = "A rope of 20 meters is cut into 4 equal parts. How long is each part?"
LENA = "Lena has 3 boxes of 6 pencils. How many pencils does she have?"


def test_prompt_styles() -> None:
    assert task_of("chat").take(4)[3].given == [
        {"role": "user", "content": f"Q: {QUESTION}\nA: Let's think step by step."}
    ]
    assert task_of("zeroshot").take(4)[3].given == f"Q: {QUESTION}\nA: Let's think step by step."
    fewshot = (
        f"Question: {LENA}\nAnswer: Lena has 3*6 = <<3*6=18>>18 pencils.\n#### 18\n\n"
        f"Question: {ROPE}\nAnswer: Each part is 20/4 = <<20/4=5>>5 meters long.\n#### 5\n\n"
        f"Question: {QUESTION}\nAnswer:"
    )
    assert task_of("fewshot", shots=2).take(4)[3].given == fewshot
    chat = task_of("fewshot_chat", shots=2).take(4)[3].given
    assert chat == [{"role": "user", "content": fewshot}]
    assert task_of("cot", shots=2).take(4)[3].given == (
        f"Q: {LENA}\n\nA: Lena has 3*6 = 18 pencils. The answer is 18.\n\n"
        f"Q: {ROPE}\n\nA: Each part is 20/4 = 5 meters long. The answer is 5.\n\n"
        f"Q: {QUESTION}\n\nA:"
    )


def test_published_numbers_of_shots() -> None:
    assert {name: style.shots for name, style in gsm8k.STYLES.items()} == {
        "fewshot": 5,
        "fewshot_chat": 5,
        "cot": 8,
        "zeroshot": 0,
        "chat": 0,
    }
    with pytest.raises(ValueError, match="5 shots were asked for, but there are 3"):
        task_of("fewshot")


def test_a_question_is_no_example_of_itself() -> None:
    task = find_task("gsm8k", TaskOptions(PROBLEMS, "fewshot", PROBLEMS, 3))
    for problem in task.take(4):
        assert problem.prompt.count(problem.response.splitlines()[0]) == 0
        assert problem.prompt.count("####") == 3


def test_gzip_and_broken_files(tmp_path: Path) -> None:
    packed = tmp_path / "data.jsonl.gz"
    packed.write_bytes(gzip.compress(PROBLEMS.read_bytes()))
    assert task_of(data=packed).take(4) == task_of().take(4)
    broken = tmp_path / "broken.jsonl"
    for content, message in (
        ('{"question": "a"}\n', "line 1 must be an object with the texts question, answer"),
        ("[1]\n", "line 1 must be an object"),
        ("{\n", "not a file of JSON lines"),
        ("", "holds no records"),
    ):
        broken.write_text(content)
        with pytest.raises(ValueError, match=message):
            task_of(data=broken)
    with pytest.raises(ValueError, match="no such file"):
        task_of(data=tmp_path / "none.jsonl")
    broken.rename(tmp_path / "broken.jsonl.gz").write_bytes(b"not packed")
    with pytest.raises(ValueError, match="not a file of JSON lines"):
        task_of(data=tmp_path / "broken.jsonl.gz")


def test_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"not installed: give --data FILE, JSON lines with quest"):
        find_task("gsm8k", TaskOptions(style="chat"))
    with pytest.raises(ValueError, match="give --examples FILE"):
        find_task("gsm8k", TaskOptions(PROBLEMS, "fewshot"))


class Hub:
    """Stands in for the package `datasets`."""

    def __init__(self, loads: Callable[[str, str | None, str], object]) -> None:
        self.loads = loads

    def load_dataset(self, path: str, name: str | None, split: str) -> object:
        return self.loads(path, name, split)


def test_with_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.loads(line) for line in PROBLEMS.read_text().splitlines()]
    asked = []

    def loads(path: str, name: str | None, split: str) -> object:
        asked.append((path, name, split))
        return rows

    monkeypatch.setitem(sys.modules, "datasets", Hub(loads))
    task = find_task("gsm8k", TaskOptions(style="fewshot", shots=2))
    assert asked == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", "main", "train")]
    assert [p.answer for p in task.take(4)] == ["72", "1250", "-5", "7"]

    def offline(path: str, name: str | None, split: str) -> object:
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "datasets", Hub(offline))
    with pytest.raises(ValueError, match=r"cannot be read from the hub \(offline\): give --data"):
        find_task("gsm8k", TaskOptions(style="chat"))


@pytest.mark.parametrize("style", ["zeroshot", "cot", "fewshot"])
def test_gold_answers_are_right_and_others_wrong(
    tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    task = task_of(style, shots=2 if style != "zeroshot" else None)
    problems = task.take(4)
    asked = answer_with(monkeypatch, lambda prompt: by_prompt[prompt])
    by_prompt = {p.prompt: p.response for p in problems}
    summary = summarise(list(run_of(tiny, task).results(problems, None)))
    assert (summary.accuracy, summary.scores["flexible"], summary.scored) == (1, 1, 4)
    assert summary.scores["strict"] == (style == "fewshot")
    assert sorted(asked) == sorted(by_prompt)
    by_prompt = {p.prompt: f"The answer is {p.answer}1. #### {p.answer}1" for p in problems}
    summary = summarise(list(run_of(tiny, task).results(problems, None)))
    assert set(summary.scores.values()) == {0.0} == {summary.accuracy}


def test_another_style_or_other_data_is_another_run(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(PROBLEMS.read_text().splitlines()[:3]))
    tasks = [task_of(), task_of("chat"), task_of("cot", shots=2), task_of(data=other)]
    names = {run_of(tiny, task).name for task in tasks}
    assert len(names) == len(tasks)
    assert run_of(tiny, task_of()).name in names


def test_results_hold_both_scores_and_resume(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    output, task = tmp_path / "rows.jsonl", task_of()
    first = list(run_of(tiny, task).results(task.take(2), output))
    again = list(run_of(tiny, task).results(task.take(4), output))
    assert len(output.read_text().splitlines()) == len(again) == 4
    assert {result.id for result in first} < {result.id for result in again}
    for result in read_results(output).values():
        assert {"strict", "flexible", "numeric"} < set(result.details)
        assert result.settings["task_options"]["style"] == "zeroshot"


def test_a_prompt_over_the_limit_is_refused(tiny: dllm.HostedModel) -> None:
    task = find_task("gsm8k", TaskOptions(PROBLEMS, "fewshot", EXAMPLES, 3))
    if max(len(p.prompt) for p in task.take(4)) < 400:
        pytest.skip("the prompts are short")
    with pytest.raises(RefusedError, match="over the model's limit"):
        list(run_of(tiny, task).results(task.take(4), None))


def test_the_command_line_shows_all_scores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["dllm", "eval", "--task", "gsm8k", "--data", str(PROBLEMS), "--style", "fewshot"]
    command += ["--examples", str(EXAMPLES), "--shots", "1"]
    lines = [json.loads(line)["question"] for line in PROBLEMS.read_text().splitlines()]
    texts = dict(zip(lines, ["#### 72.0", "it is 1250", "#### -5", "#### 8"], strict=True))
    answer_with(monkeypatch, lambda prompt: next(texts[q] for q in lines if q in prompt))

    def told(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        assert not ended.value.code, written.err
        return written.out

    assert "strict 25.0%, flexible 50.0%, numeric 75.0%" in told()
    (row,) = json.loads(told("--json"))["rows"]
    assert row["accuracy"] == row["scores"]["flexible"] == 0.5
    assert row["scored"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "gsm8k", "--data", str(PROBLEMS), "--style", "cto"], "did you mean 'cot'"),
        (["--task", "gsm8k", "--data", "none"], "no such file"),
        (["--task", "gsm8k", "--data", str(PROBLEMS), "--run-code"], "no code to run"),
        (["--task", "arithmetic", "--style", "cot"], "--style: the task 'arithmetic' makes its"),
        (["--task", "gsm8k", "--data", str(PROBLEMS), "--shots", "-1"], "shots=-1"),
    ],
)
def test_mistakes_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["dllm", "eval", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
