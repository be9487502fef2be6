"""JSON of a schema: problems whose answers are in their language, and a judge of values."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.constraints import JsonSchema
from dllm.eval.run.run import Run
from dllm.eval.run.summary import summarise
from dllm.eval.tasks import find_task
from dllm.eval.tasks import json as task_module
from dllm.eval.tasks.json import FIELDS, Asked, asked, leaves, same
from dllm.eval.tasks.task import TaskOptions
from dllm.settings import resolve
from tests.support import DATA

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "size": {"type": "object", "properties": {"w": {"type": "integer"}}},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}
VALUE = {"name": "Ann", "size": {"w": 3}, "tags": ["a", "b"]}  # four leaves
PROBLEM = asked("p", "?", VALUE, SCHEMA)


def scores(text: str, problem: Asked = PROBLEM) -> tuple[bool, bool, bool, float]:
    details = task_module.judge(problem, text).details
    return details["parses"], details["valid"], details["exact"], details["fields"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROBLEM.response, (True, True, True, 1.0)),
        (json.dumps(VALUE, indent=2), (True, True, True, 1.0)),
        (f"Here it is:\n```json\n{json.dumps(VALUE)}\n```\n", (True, True, True, 1.0)),
        (f"```\n{json.dumps({'name': 'Bo'})}\n```\n```\n{PROBLEM.response}", (True, True, True, 1)),
        ('{"tags":["a","b"],"name":"Ann","size":{"w":3.0}}', (True, True, True, 1.0)),
        ('{"name":"Ann","size":{"w":true},"tags":["a","b"]}', (True, False, False, 0.75)),
        ('{"name":"Ann","size":{"w":3},"tags":["b","a"]}', (True, True, False, 0.5)),
        ('{"name":"Ann"}', (True, True, False, 0.25)),
        ('{"name":"Ann","size":{"w":3},"tags":["a","b","c"]}', (True, True, False, 1.0)),
        ('{"name":"Ann","more":1}', (True, False, False, 0.25)),
        ('{"name":"Bo","name":"Ann"}', (False, False, False, 0.0)),
        ('{"name":"Ann","size":{"w":NaN}}', (False, False, False, 0.0)),
        ("[]", (True, False, False, 0.0)),
        ('{"name":"Ann"', (False, False, False, 0.0)),
        (f"{PROBLEM.response} and more", (False, False, False, 0.0)),
        ("", (False, False, False, 0.0)),
    ],
)
def test_what_is_json_what_is_valid_and_what_is_right(text: str, expected: Any) -> None:
    assert scores(text) == expected
    judgement = task_module.judge(PROBLEM, text)
    assert judgement.correct is expected[2]
    assert judgement.extracted is expected[0]


def test_values_of_one_leaf_and_of_none() -> None:
    assert leaves([]) == {(): []}
    assert leaves({"a": [1, {}]}) == {("a", 0): 1, ("a", 1): {}}
    number = asked("p", "?", 4, {"type": "integer"})
    assert scores("4", number) == (True, True, True, 1.0)
    assert scores("4.0", number) == (True, True, True, 1.0)
    assert scores("04", number) == (False, False, False, 0.0)
    assert scores("5", number) == (True, True, False, 0.0)
    assert not same(True, 1)
    assert not same([0], [False])
    assert not same({}, [])
    assert same({"a": 1, "b": [None]}, {"b": [None], "a": 1.0})


def test_a_format_is_a_part_of_what_is_valid() -> None:
    dated = asked("p", "?", "2031-05-03", {"type": "string", "format": "date"})
    assert scores('"2031-05-03"', dated)[1]
    assert not scores('"2031-15-03"', dated)[1]


@pytest.mark.parametrize("name", ["json", "json:records", "json:records,fields=10"])
def test_every_answer_is_one_that_its_constraint_allows(name: str) -> None:
    task = find_task(name)
    for problem in task.take(40):
        assert isinstance(problem, Asked)
        assert isinstance(problem.constraint, JsonSchema)
        assert problem.constraint.byte_automaton().accepts(problem.response.encode())
        assert task.judgement(problem, problem.response).details["valid"]


def test_records_have_as_many_fields_as_they_were_asked_for() -> None:
    for fields, counts in (("3", {3}), ("2-4", {2, 3, 4})):
        problems = find_task(f"json:records, fields={fields}").take(60)
        assert {len(json.loads(problem.answer)) for problem in problems} == counts
    orders = {tuple(json.loads(problem.answer)) for problem in problems}
    assert len({frozenset(order) for order in orders}) < len(orders)  # in one order and another
    assert set().union(*orders) == set(FIELDS)


def test_a_chat_asks_the_same() -> None:
    chats = find_task("json:records", TaskOptions(style="chat")).take(3)
    plain = find_task("json:records").take(3)
    assert [chat.prompt for chat in chats] == [one.prompt for one in plain]
    assert all(chat.turns == (("user", chat.prompt.strip()),) for chat in chats)
    assert not any(one.turns for one in plain)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("json:sum", {}, "unknown kind 'sum' of json"),
        ("json:sums,fields=3", {}, "json:sums,fields=3: the only option is"),
        ("json:records,fields=x", {}, "json:records,fields=4 or json:records,fields=2-5"),
        ("json:records,fields=5-2", {}, "fields=5-2 must lie between 1 and 10"),
        ("json:records,fields=11", {}, "fields=11-11 must lie between 1 and 10"),
        ("json", {"style": "loud"}, "unknown style 'loud' of json"),
        ("json", {"data": Path("x.jsonl")}, "--data: json makes its own .*json_mode_eval reads"),
    ],
)
def test_what_cannot_be_asked_says_so(name: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_task(name, TaskOptions(**options))


@pytest.mark.parametrize("name", ["json", "json_mode_eval"])
def test_without_the_package_that_validates_the_way_to_it_is_told(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    task_module._validator.cache_clear()
    options = TaskOptions(data=DATA / "json_mode_eval.jsonl" if "_" in name else None)
    with pytest.raises(ValueError, match=r"`jsonschema`, which is not installed: install dllm\[e"):
        find_task(name, options)


def test_the_embedded_model_follows_a_schema_and_does_the_sums(tiny: dllm.HostedModel) -> None:
    task = find_task("json")
    problems, settings = task.take(50), resolve(tiny.defaults, None, {"max_new_tokens": 16})
    held, free = (
        summarise(list(Run(tiny, task, settings, 50, constrained=one).results(problems, None)))
        for one in (True, False)
    )
    assert held.scores["valid"] == held.scores["parses"] == 1
    assert free.scores["valid"] <= 0.95  # 0.88: two numbers run together, or more is written
    assert held.accuracy >= 0.95  # 0.98
    assert held.accuracy > free.accuracy
    assert held.nats_lost is not None
    assert held.constraint_ms is not None
    assert held.nats_lost > 0
    assert held.constraint_ms > 0
    assert (free.forced, free.nats_lost, free.constraint_ms) == (None, None, None)


# Files in the form of json-mode-eval.

MESSAGES = [{"role": "system", "content": "Answer in JSON."}, {"role": "user", "content": "Ann?"}]
GOOD = {"prompt": MESSAGES, "schema": json.dumps(SCHEMA), "completion": json.dumps(VALUE)}


def read(folder: Path, *lines: Any, **options: Any) -> dllm.eval.tasks.Task:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return find_task("json_mode_eval", TaskOptions(data=path, **options))


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, GOOD).take(1)
    assert problem.turns == (("system", "Answer in JSON."), ("user", "Ann?"))
    assert problem.prompt == "Answer in JSON.\n\nAnn?"
    assert json.loads(problem.answer) == VALUE
    assert problem.constraint == JsonSchema(SCHEMA)
    values = {**GOOD, "schema": SCHEMA, "completion": VALUE}  # numbers are kept as they stand
    assert read(tmp_path, values).take(1) == [problem]
    (plain,) = read(tmp_path, {**GOOD, "prompt": "Ann?"}, style="plain").take(1)
    assert (plain.prompt, plain.turns) == ("Ann?", ())


def test_the_extended_form_states_the_schema_beside_the_text(tmp_path: Path) -> None:
    line = {"instance_id": "a", "input": "Ann?", "schema": json.dumps(SCHEMA), "output": "{}"}
    (problem,) = read(tmp_path, line).take(1)
    (system, stated), user = problem.turns
    assert (system, user) == ("system", ("user", "Ann?"))
    assert json.dumps(SCHEMA, separators=(",", ":")) in stated
    assert problem.answer == "{}"
    (plain,) = read(tmp_path, line, style="plain").take(1)
    assert plain.prompt == f"{stated}\n\nAnn?"


def test_another_schema_is_another_run(tmp_path: Path) -> None:
    other = {**SCHEMA, "required": []}
    lines = (GOOD, {**GOOD, "schema": json.dumps(other)}, {**GOOD, "completion": "{}"})
    digests = [read(tmp_path, line).options["problems"] for line in lines]
    assert len(set(digests)) == 3
    assert read(tmp_path, GOOD).options["problems"] == digests[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"prompt": "a", "schema": "{}"},
            "line 2 has no field 'completion': .*are: prompt, schema",
        ),
        ({"input": "a", "schema": "{}"}, "line 2 has no field 'output': .*are: input, schema"),
        ([1], "line 2 has no field 'prompt': .*its fields are: none"),
        ({**GOOD, "prompt": 3}, "line 2, field 'prompt' must be a list of messages, or a text"),
        ({**GOOD, "prompt": []}, "line 2, field 'prompt' must be a list of messages"),
        (
            {**GOOD, "prompt": [{"role": "user"}]},
            "line 2, field 'prompt': message 1 must be an",
        ),
        (
            {**GOOD, "prompt": [{"role": "user", "content": None}]},
            "line 2, field 'prompt', content must be a t",
        ),
        ({**GOOD, "schema": "{"}, "line 2, field 'schema' is not valid JSON"),
        ({**GOOD, "completion": "so"}, "line 2, field 'completion' is not valid JSON"),
        (
            {**GOOD, "schema": '{"not": {}}'},
            "line 2, field 'schema': JSON schema: #/not is not supp",
        ),
        ({**GOOD, "schema": '{"type": "text"}'}, "line 2, field 'schema': "),
    ],
)
def test_a_broken_line_is_named_with_its_field(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"rows.jsonl {message}"):
        read(tmp_path, GOOD, line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name the file with --data FILE, JSON lines with prompt, schema, completion"),
        ({"data": Path("gone.jsonl")}, "--data gone.jsonl: no such file"),
        ({"data": DATA / "json_mode_eval.jsonl", "shots": 2}, "--shots.* is asked as it is"),
        ({"data": DATA / "json_mode_eval.jsonl", "style": "x"}, "unknown style 'x'"),
    ],
)
def test_what_cannot_be_read_says_so(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_task("json_mode_eval", TaskOptions(**options))
