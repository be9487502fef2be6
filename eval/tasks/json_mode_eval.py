"""Chats that ask for JSON of a schema, from a file in the form of NousResearch/json-mode-eval.

An object a line: `prompt`, a list of messages with `role` and `content`, or a text; `schema` and
`completion`, the schema of the answer and the answer, each as JSON inside a text, or as it is. Or,
as in eth-sri/json-mode-eval-extended (2508.10111), `input`, `schema` and `output`, where `input` is
a text that does not state the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dllm.eval.tasks.dataset import Literal, Row, checked, rows
from dllm.eval.tasks.json import Asked, asked, check_package, judge, written
from dllm.eval.tasks.task import ReadTask, Task, TaskOptions, choose
from dllm.reading import parse_json

STYLES = {"chat": True, "plain": False}  # whether prompts are chats
DEFAULT_STYLE = "chat"
_KEYS = ("prompt", "schema", "completion")
_KEYS_EXTENDED = ("input", "schema", "output")
_STATED = "You answer in JSON. The schema that the answer must follow:\n<schema>\n{}\n</schema>"


def read_task(options: TaskOptions) -> Task:
    """Returns the task with the problems of the file."""
    if options.data is None:
        raise ValueError(
            f"json_mode_eval: name the file with --data FILE, JSON lines with {', '.join(_KEYS)}; "
            'datasets.load_dataset("NousResearch/json-mode-eval", split="train").to_json(FILE) '
            "writes the published one"
        )
    if options.shots is not None or options.examples is not None or options.run_code:
        raise ValueError(
            "--shots, --examples, --run-code: json_mode_eval is asked as it is in the file"
        )
    check_package()
    style = options.style or DEFAULT_STYLE
    chat = choose("json_mode_eval", "style", style, STYLES)
    found = rows(options.data, "--data", f"JSON lines with {', '.join(_KEYS)}")
    problems = [_problem(number, row, chat) for number, row in enumerate(found)]
    return TASK.of(problems, judge, style, {"shots": 0})


TASK = ReadTask(
    "json_mode_eval",
    "chats that ask for JSON of a schema",
    "NousResearch/json-mode-eval",
    read_task,
)


def _problem(number: int, row: Row, chat: bool) -> Asked:
    extended = "prompt" not in row.fields and "input" in row.fields
    keys = _KEYS_EXTENDED if extended else _KEYS
    missing = [key for key in keys if key not in row.fields]
    if missing:
        there = ", ".join(row.fields) or "none"
        raise ValueError(
            f"{row.where} has no field {missing[0]!r}: it must be an object with "
            f"{', '.join(keys)}; its fields are: {there}"
        )
    schema, answer = _value(row, "schema"), _value(row, keys[-1])
    turns = _turns(row, keys[0])
    if extended:
        turns = (("system", _STATED.format(written(schema))), *turns)
    prompt = "\n\n".join(text for _, text in turns)
    try:
        problem = asked(f"json_mode_eval-{number}", prompt, answer, schema)
    except ValueError as error:
        raise ValueError(f"{row.where}, field 'schema': {error}") from None
    return replace(problem, turns=turns) if chat else problem


def _turns(row: Row, key: str) -> tuple[tuple[str, str], ...]:
    """Returns role and text of each message of the prompt; a text is that of a user."""
    given, where = row.fields[key], f"{row.where}, field {key!r}"
    if isinstance(given, str) and not isinstance(given, Literal):
        return (("user", checked(given, where)),)
    if not isinstance(given, list) or not given:
        raise ValueError(f"{where} must be a list of messages, or a text")
    for number, message in enumerate(given, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"{where}: message {number} must be an object with role and content")
    return tuple(
        (
            checked(message["role"], f"{where}, role"),
            checked(message["content"], f"{where}, content"),
        )
        for message in given
    )


def _value(row: Row, key: str) -> Any:
    """Returns what a field says, as JSON inside a text or as it is."""
    given, where = row.fields[key], f"{row.where}, field {key!r}"
    if isinstance(given, str) and not isinstance(given, Literal):
        return parse_json(given, where)
    return _numbers(given)


def _numbers(value: Any) -> Any:
    """Returns a value whose numbers are numbers: files keep them as they are written."""
    if isinstance(value, Literal):
        return parse_json(value, "a number")
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    return [_numbers(one) for one in value] if isinstance(value, list) else value
