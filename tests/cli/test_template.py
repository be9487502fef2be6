"""`--template`: what is laid out behind each prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import dllm
from dllm.constraints import Hole, Regex, Template
from tests.support.commands import Inside

DIVIDE = "write f(x): divide by 3."
PARTS = ["def f(x):\n    x =", {"hole": None, "tokens": [4, 5, 6]}, "\n    return x"]
WHOLE = "def f(x):\n    x = x // 3\n    return x"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gap.json").write_text(json.dumps(PARTS), encoding="utf-8")
    held = [PARTS[0], {"regex": " x // [0-9]"}, PARTS[2]]
    Path("gap.yaml").write_text(yaml.safe_dump({"template": held}), encoding="utf-8")


def test_a_file_in_json_is_laid_out_as_a_call_does(inside: Inside) -> None:
    assert inside("generate", DIVIDE, "--template", "gap.json").stdout == f"{WHOLE}\n"
    shown = inside("generate", DIVIDE, "--template", "gap.json", "--json").json
    template = Template(PARTS[0], Hole(tokens=(4, 5, 6)), PARTS[2])  # type: ignore[arg-type]
    out = dllm.generate(dllm.load("tiny"), DIVIDE, template=template)
    assert shown["texts"] == list(out.texts or ()) == [WHOLE]
    assert shown["holes"] == [[{"text": " x // 3", "tokens": list(out.holes[0][0].tokens)}]]
    assert [one["lengths"] for one in shown["tried"][0]] == [[4], [5], [6]]
    scores = [one["score"] for one in shown["tried"][0]]
    assert scores == pytest.approx([one.score for one in out.tried[0]])


def test_a_file_in_yaml_and_a_file_of_settings_say_the_same(inside: Inside) -> None:
    Path("mine.yaml").write_text("template: {template: {file: gap.yaml}}\n", encoding="utf-8")
    for flags in (["--template", "gap.yaml"], ["--config", "mine.yaml"]):
        done = inside("generate", DIVIDE, *flags)
        assert done.stdout == f"{WHOLE}\n", done.stderr


def test_what_stands_between_two_texts_needs_no_prompt(inside: Inside) -> None:
    shown = inside("generate", "--template", "gap.yaml", "--json").json
    template = Template(PARTS[0], Hole(Regex(" x // [0-9]")), PARTS[2])  # type: ignore[arg-type]
    out = dllm.generate(dllm.load("tiny"), template=template)
    assert shown["texts"] == list(out.texts or ())
    done = inside("generate", "--template", "gap.yaml", "--output", "answers.jsonl")
    assert "--output is of prompts" in done.stderr


def test_prompts_of_a_file_have_it_each(inside: Inside) -> None:
    Path("prompts.txt").write_text(f"{DIVIDE}\n{DIVIDE.replace('3', '4')}\n", encoding="utf-8")
    found = inside("generate", "--prompts", "prompts.txt", "--template", "gap.json").lines
    texts = {one["number"]: one["text"] for one in found}
    assert texts == {1: WHOLE, 2: WHOLE.replace("3", "4")}
    holes = {one["number"]: one["holes"] for one in found}
    assert holes == {1: [" x // 3"], 2: [" x // 4"]}


def test_a_list_has_one_for_each_prompt_whatever_their_order(inside: Inside) -> None:
    Path("prompts.txt").write_text(f"{DIVIDE} then add 1.\n{DIVIDE}\n", encoding="utf-8")
    templates = [{"template": ["tom", {"regex": "[0-9]"}]}, {"template": PARTS}]
    Path("mine.json").write_text(json.dumps({"template": templates}), encoding="utf-8")
    found = inside("generate", "--prompts", "prompts.txt", "--config", "mine.json").lines
    texts = {one["number"]: one["text"] for one in found}
    assert texts[1].startswith("tom")
    assert texts[2] == WHOLE
    Path("mine.json").write_text(json.dumps({"template": templates[:1]}), encoding="utf-8")
    done = inside("generate", "--prompts", "prompts.txt", "--config", "mine.json")
    assert "template has 1 entries and there are 2 prompts" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--template", "none.json"], "--template: there is no file 'none.json'"),
        (["--template", "text.json"], "must be a list of texts and holes"),
        (["--template", "whole.json"], "has no hole: add Hole"),
        (["--template", "never.json"], "--template: Regex([^\\s\\S]) accepts no text at all"),
        (["--template", "gap.json", "-n", "8"], "template= refuses max_new_tokens=8: the template"),
        (["--template", "gap.json", "--regex", "a"], "template= refuses constraint="),
    ],
)
def test_what_is_refused(flags: list[str], said: str, inside: Inside) -> None:
    Path("text.json").write_text('"text"', encoding="utf-8")
    Path("whole.json").write_text('["text"]', encoding="utf-8")
    Path("never.json").write_text(json.dumps([{"regex": r"[^\s\S]"}]), encoding="utf-8")
    done = inside("generate", "tom", *flags)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
