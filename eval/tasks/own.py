"""Questions and answers in a file of one's own, with three ready judges."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

from dllm.eval.tasks.answers import stated_number
from dllm.eval.tasks.dataset import Row, checked, rows
from dllm.eval.tasks.task import Judgement, Problem, ReadTask, Task, TaskOptions, choose

# By these names a field is found that no option names.
QUESTIONS = ("question", "prompt", "problem", "input", "query", "instruction")
ANSWERS = ("answer", "target", "output", "label", "gold", "expected", "completion")
CHOICES = ("choices", "options")
STYLES = {"plain": False, "chat": True}  # whether prompts are chats
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclass(frozen=True)
class Item:
    """A question with its answer."""

    row: Row
    question: str
    answer: str
    choices: Mapping[str, str]  # by label; empty without any


def read_task(options: TaskOptions) -> Task:
    """Returns the task with the problems of the file."""
    if options.data is None:
        raise ValueError("own: name the file with --data FILE, such as own.jsonl, .json or .csv")
    if options.shots is not None or options.examples is not None or options.run_code:
        raise ValueError(
            "--shots, --examples, --run-code: own data are asked as they are, with --template "
            "around each question"
        )
    style = options.style or "plain"
    chat = choose("own", "style", style, STYLES)
    items, answer_field = _items(rows(options.data, "--data", "questions and answers"), options)
    judge = options.judge or _usual_judge(items)
    items = choose("own", "judge", judge, JUDGES).prepare(items)
    prompts = [_prompt(options.template, item, answer_field) for item in items]
    problems = [
        Problem(f"own-{n}", text, item.answer, item.answer, (("user", text),) if chat else ())
        for n, (text, item) in enumerate(zip(prompts, items, strict=True))
    ]
    by_id = {problem.id: item for problem, item in zip(problems, items, strict=True)}
    task = TASK.of(
        problems,
        lambda problem, text: JUDGES[judge].say(by_id[problem.id], text),
        style,
        {"shots": 0},
    )
    described = f"{options.data.name}, judged as {judge}"
    decides = {**task.options, "judge": judge}
    if any(item.choices for item in items):
        listed = repr([dict(item.choices) for item in items])
        decides["choices"] = hashlib.sha256(listed.encode()).hexdigest()[:12]

    def stated(problem: Problem, text: str) -> str | None:
        return _stated(JUDGES[judge].say(by_id[problem.id], text), text)

    task = replace(task, description=described, options=decides, repeats=True)
    return replace(task, stated=stated)


TASK = ReadTask("own", "questions and answers of your own", "--data FILE", read_task)


def _items(found: Sequence[Row], options: TaskOptions) -> tuple[list[Item], str]:
    """Returns the items, and the field of their answers."""
    for row in found:
        if not row.fields:
            raise ValueError(f"{row.where} must be an object with fields: a question, an answer")
    question = _field(found[0], options.question_field, QUESTIONS, "question")
    answer = _field(found[0], options.answer_field, ANSWERS, "answer", besides=question)
    return [Item(r, r.text(question), r.text(answer), _choices(r)) for r in found], answer


def _field(row: Row, name: str | None, usual: Sequence[str], noun: str, besides: str = "") -> str:
    if name is not None:
        return name
    there = [field for field in usual if field in row.fields and field != besides]
    if len(there) != 1:
        listed = ", ".join(map(repr, row.fields)) or "none"
        why = f"may be any of {', '.join(there)}" if there else "has none of the usual names"
        raise ValueError(
            f"{row.where}: the {noun} {why}; the fields are {listed}: name it with --{noun}-field"
        )
    return there[0]


def _choices(row: Row) -> dict[str, str]:
    """Returns choices by label: letters for a list, else the labels that are there."""
    field = next((name for name in CHOICES if name in row.fields), None)
    value = None if field is None else row.fields[field]
    if value is None:
        return {}
    if isinstance(value, dict) and {"text", "label"} <= set(value):
        labels, texts = value["label"], value["text"]
    elif isinstance(value, dict):
        labels, texts = list(value), list(value.values())
    else:
        labels, texts = list(ascii_uppercase), value
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) > len(labels):
        raise ValueError(f"{row.where}, field {field!r} must be a list of up to 26 texts")
    where = f"{row.where}, field {field!r}"
    pairs = zip(labels, texts, strict=False)
    return {checked(label, where): checked(text, where) for label, text in pairs}


def _prompt(template: str | None, item: Item, answer_field: str) -> str:
    """Returns a template with the fields of an item in its places."""
    listed = "\n".join(f"{label}. {text}" for label, text in item.choices.items())
    if template is None:
        return f"{item.question}\n{listed}" if listed else item.question
    known = {**item.row.fields, "question": item.question, "choices": listed}
    known.pop(answer_field, None)

    def place(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0][0]
        if found[1] not in known:
            names = ", ".join(f"{{{name}}}" for name in known)
            raise ValueError(
                f"--template: {item.row.where} has nothing for {found[0]}: there are {names}; a "
                "brace of the text itself is written twice"
            )
        return checked(known[found[1]], f"{item.row.where}, field {found[1]!r}")

    if not any(found[1] is not None for found in _PLACE.finditer(template)):
        raise ValueError(
            f"--template {template!r} has no place for the question: write {{question}}"
        )
    return _PLACE.sub(place, template.replace("\\n", "\n"))


@dataclass(frozen=True)
class Judge:
    """What counts as right."""

    prepare: Callable[[list[Item]], list[Item]]  # checks the answers of the file
    say: Callable[[Item, str], Judgement]


def _usual_judge(items: Sequence[Item]) -> str:
    if all(item.choices or re.fullmatch("[A-Z]", item.answer.strip()) for item in items):
        return "choice"
    # A text with a number in it is no number: "route 66" is compared as it is written.
    if all(re.fullmatch(r"\s*[-+]?[$€£]?[\d.,/]+%?\s*", item.answer) for item in items):
        return "number"
    return "exact"


def _exactly(item: Item, text: str) -> Judgement:
    return Judgement(text.strip() == item.answer.strip(), extracted=bool(text.strip()))


def _numbers(items: list[Item]) -> list[Item]:
    for item in items:
        if not stated_number(item.answer):
            raise ValueError(
                f"{item.row.where}: the answer {item.answer!r} is no number, which --judge number "
                "compares: mend it, or choose --judge exact"
            )
    return items


def _by_number(item: Item, text: str) -> Judgement:
    stated = stated_number(text)
    values = [str(value) for value in sorted(stated)]
    right = not stated.isdisjoint(stated_number(item.answer))
    return Judgement(right, {"stated": values}, extracted=bool(stated))


def _labels(items: list[Item]) -> list[Item]:
    return [replace(item, answer=_label(item)) for item in items]


def _label(item: Item) -> str:
    """Returns the label of the right choice, given as such, by its text or by number from 0."""
    answer, choices = item.answer.strip(), item.choices
    if answer in choices or (not choices and re.fullmatch("[A-Z]", answer)):
        return answer
    named = [label for label, text in choices.items() if text.strip() == answer]
    if answer.isdecimal() and int(answer) < len(choices):
        named = named or [list(choices)[int(answer)]]
    if len(named) != 1:
        there = ", ".join(choices) or "a letter, A to Z, where there are no choices"
        raise ValueError(
            f"{item.row.where}: the answer {item.answer!r} is none of the choices: "
            f"it may be {there}"
        )
    return named[0]


def stated_choice(text: str, choices: Mapping[str, str]) -> str | None:
    """Returns the label that an answer states, None if there is none.

    In a box, behind "answer", at the beginning, alone on the last line, in brackets; else the only
    choice whose text is there.
    """
    text = re.sub(r"(?s).*</think>", "", text).strip()
    one = "|".join(map(re.escape, sorted(choices or ascii_uppercase, key=len, reverse=True)))
    label = rf"(?:option|choice|text|\W|_)*?(?<!\w)({one})(?![\w'])"
    for pattern in (
        rf"\\boxed\{{{label}",
        rf"(?i:\banswer)\b[^\n.:]{{0,40}}?(?:\bis\b|:|=){label}",
        rf"\A[\W_]*({one})(?=[\W_]*\Z|[).:])",
        rf"(?m)^[\W_]*({one})[\W_]*\Z",
        rf"\(({one})\)",
    ):
        found = re.findall(pattern, text)
        if found:
            return str(found[-1])
    named = [key for key, value in choices.items() if value.strip().lower() in text.lower()]
    return named[0] if len(named) == 1 else None


def _stated(found: Judgement, text: str) -> str | None:
    """Returns the answer that was judged; of a number, all that it may stand for."""
    told = found.details.get("stated", text.strip())
    return (", ".join(told) if isinstance(told, list) else told) or None


def _by_choice(item: Item, text: str) -> Judgement:
    stated = stated_choice(text, item.choices)
    return Judgement(stated == item.answer, {"stated": stated}, extracted=stated is not None)


JUDGES: dict[str, Judge] = {
    "exact": Judge(list, _exactly),
    "number": Judge(_numbers, _by_number),
    "choice": Judge(_labels, _by_choice),
}
