"""Grade-school word problems (GSM8K, 2110.14168), prompted and scored as lm-eval does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from dllm.eval.tasks.answers import stated_number
from dllm.eval.tasks.dataset import Record, Source, records
from dllm.eval.tasks.task import Judgement, Problem, ReadTask, Task, TaskOptions, choose

_KEYS = ("question", "answer")
_TEST = Source("openai/gsm8k", "main", "test", _KEYS)
_TRAIN = Source("openai/gsm8k", "main", "train", _KEYS, "--examples")

# The patterns of lm-eval's tasks. The one for sentences asks for one more character, of any kind,
# so that it cuts the last digit off a number at the very end; the published scores have that too.
_AFTER_HASHES = re.compile(r"#### (\-?[0-9\.\,]+)")
_IN_SENTENCE = re.compile(r"The answer is (\-?[0-9\.\,]+).")
_ANY_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))
_CALCULATOR = re.compile(r"<<[^>]*>>")
_ENDS = ("</s>", "<|im_end|>")


@dataclass(frozen=True)
class Style:
    """How problems are put to the model, and where a text states its answer."""

    question: str  # with a place for the question
    strict: re.Pattern[str]
    stops: tuple[str, ...]  # what follows is no part of the answer
    shots: int = 0
    in_words: bool = False  # solved problems end with a sentence, not with hashes
    chat: bool = False


_FEWSHOT = Style("Question: {}\nAnswer:", _AFTER_HASHES, ("Question:", *_ENDS), shots=5)
_ZEROSHOT = Style("Q: {}\nA: Let's think step by step.", _IN_SENTENCE, ("Q:", *_ENDS))
STYLES = {
    "fewshot": _FEWSHOT,  # lm-eval gsm8k
    "fewshot_chat": replace(_FEWSHOT, chat=True),  # Fast-dLLM: the same text as a user's turn
    "cot": Style("Q: {}\n\nA:", _IN_SENTENCE, _ZEROSHOT.stops, 8, in_words=True),  # gsm8k_cot
    "zeroshot": _ZEROSHOT,  # lm-eval gsm8k_cot_zeroshot
    "chat": replace(_ZEROSHOT, chat=True),  # d3LLM
}
DEFAULT_STYLE = "fewshot"


def find_style(name: str | None) -> Style:
    """Returns a prompt style by name; raises ValueError that lists the known ones."""
    return choose("gsm8k", "style", name or DEFAULT_STYLE, STYLES)


def read_task(options: TaskOptions) -> Task:
    """Returns the task with the problems of the file or of the hub."""
    style = find_style(options.style)
    shots = style.shots if options.shots is None else options.shots
    name = options.style or DEFAULT_STYLE
    task = TASK.of(problems(options), partial(judge, style), name, {"shots": shots})
    return replace(task, stated=partial(stated, style))


TASK = ReadTask("gsm8k", "grade-school word problems", "arXiv 2110.14168", read_task)


def problems(options: TaskOptions) -> list[Problem]:
    """Returns all problems of the file or of the hub's test split, in their order."""
    if options.run_code:
        raise ValueError("--run-code: gsm8k has no code to run")
    style = find_style(options.style)
    shots = style.shots if options.shots is None else options.shots
    data = records(_TEST, options.data)
    examples = records(_TRAIN, options.examples) if shots else []
    found = []
    for number, record in enumerate(data):
        others = [e for e in examples[: shots + 1] if e["question"] != record["question"]]
        if len(others) < shots:
            raise ValueError(f"{shots} shots were asked for, but there are {len(others)} examples")
        text, answer = prompt(style, record["question"], others[:shots]), record["answer"]
        try:
            right = gold(answer)
        except ValueError as error:
            file = options.data or _TEST.path
            raise ValueError(f"{file} problem {number + 1}: {error}") from None
        turns = (("user", text),) if style.chat else ()
        found.append(Problem(f"gsm8k-{number}", text, answer, right, turns))
    return found


def prompt(style: Style, question: str, examples: Sequence[Record]) -> str:
    """Returns the text that asks a question, after solved ones."""
    solved = [
        f"{style.question.format(e['question'])} {_solution(style, e['answer'])}" for e in examples
    ]
    return "\n\n".join([*solved, style.question.format(question)])


def gold(answer: str) -> str:
    """Returns the number after the hashes of a data set's answer; raises ValueError without one."""
    _, hashes, number = answer.rpartition("####")
    if not hashes or not stated_number(number):
        raise ValueError(f"an answer must end with #### and a number: {answer!r}")
    return normalised(number.strip())


def extract_strict(style: Style, text: str) -> str | None:
    """Returns the first number that stands where the style has it, None if there is none."""
    found = style.strict.search(text)
    return found.group(1).strip() if found else None


def extract_flexible(text: str) -> str | None:
    """Returns the last number of a text, None if there is none."""
    found = _ANY_NUMBER.findall(text)
    return (found[-1][0] or found[-1][1]).strip() if found else None


def normalised(number: str) -> str:
    """Returns a number without commas, dollar signs and a dot at its end."""
    for pattern in _IGNORED:
        number = pattern.sub("", number)
    return number.lower()


def before_stop(style: Style, text: str) -> str:
    """Returns a text without what follows the answer."""
    ends = [at for at in (text.find(stop) for stop in style.stops) if at >= 0]
    return text[: min(ends)] if ends else text


def stated(style: Style, problem: Problem, text: str) -> str | None:
    """Returns the flexible answer, as it is compared."""
    found = extract_flexible(before_stop(style, text))
    return None if found is None else normalised(found)


def judge(style: Style, problem: Problem, text: str) -> Judgement:
    """Returns the strict, the flexible and the numeric score; the flexible one counts.

    The first two are lm-eval's, whatever a person would say; the numeric one is what that is.
    """
    number, text = stated_number(text), before_stop(style, text)
    strict, flexible = extract_strict(style, text), extract_flexible(text)
    right = flexible is not None and normalised(flexible) == problem.answer
    details = {
        "strict": strict is not None and normalised(strict) == problem.answer,
        "flexible": right,
        "numeric": not number.isdisjoint(stated_number(problem.answer)),
        "strict_answer": strict,
        "flexible_answer": flexible,
    }
    return Judgement(right, details, extracted=flexible is not None)


def _solution(style: Style, answer: str) -> str:
    if not style.in_words or "####" not in answer:
        return answer
    work, _, number = _CALCULATOR.sub("", answer).rpartition("####")
    return f"{' '.join(work.split())} The answer is {number.strip()}."
