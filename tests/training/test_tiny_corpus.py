"""The problems, the tokenizer and the batches that the embedded model is made from."""

from __future__ import annotations

import operator
import random
import re
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dllm.eval.tasks import arithmetic, functions, lists
from dllm.eval.tasks.task import Problem, Split, split_of
from dllm.training.tiny_corpus import GROUP, ROWS, Corpus, Mixture, build_tokenizer

FAMILIES = (arithmetic, lists, functions)
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MANY = 1000
MIXED = Mixture(drills=0.3, focus=0.3, families=(1, 1, 1))
DRILLS = Mixture(drills=1.0, focus=0.0, families=(1, 1, 1))


def take(family: ModuleType, count: int, split: Split = "test", seed: int = 0) -> list[Problem]:
    return list(islice(family.problems(split, seed=seed), count))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_gives_the_same_problems(family: ModuleType) -> None:
    assert take(family, 50) == take(family, 50)
    assert take(family, 50, seed=1) != take(family, 50, seed=2)
    assert len({problem.id for problem in take(family, 50)}) == 50


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_prompt(family: ModuleType) -> None:
    prompts = {split: {p.prompt for p in take(family, MANY, split)} for split in SPLITS}
    for split in SPLITS:
        assert {split_of(prompt) for prompt in prompts[split]} == {split}
        others = set().union(*(prompts[other] for other in SPLITS if other != split))
        assert not prompts[split] & others


@pytest.mark.parametrize("family", FAMILIES)
def test_response_is_the_right_answer_and_nothing_else_is(family: ModuleType) -> None:
    for problem in take(family, MANY):
        assert family.is_correct(problem, problem.response)
        assert family.extract(problem.response) == problem.answer
        assert not family.is_correct(problem, "")
        assert not family.is_correct(problem, problem.response + "1")


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_has_one_response(family: ModuleType) -> None:
    known: dict[str, str] = {}
    for problem in [p for seed in range(3) for p in take(family, MANY, seed=seed)]:
        assert known.setdefault(problem.prompt, problem.response) == problem.response


def test_unknown_split_and_number_of_operations_are_named() -> None:
    with pytest.raises(ValueError, match="split='tests'"):
        next(arithmetic.problems("tests"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="operations=7"):
        next(arithmetic.problems("test", operations=7))


def solve_story(prompt: str) -> int:
    """Returns what a story ends with, read off its words."""
    start, *sentences, _ = re.split(r"(?<=[.?]) ", prompt)
    value = int(re.findall(r"\d+", start)[0])
    for sentence in sentences:
        number = int(re.findall(r"\d+", sentence)[0])
        if "times as many" in sentence:
            value *= number
        elif "equally" in sentence:
            assert value % number == 0
            value //= number
        elif sentence.endswith("more."):
            value += number
        else:
            value -= number
        assert 0 <= value <= 99
    return value


def test_stories_come_to_the_number_that_they_claim() -> None:
    for problem in take(arithmetic, MANY):
        assert problem.answer == str(solve_story(problem.prompt))


def test_each_line_of_work_is_true() -> None:
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
    for problem in take(arithmetic, MANY):
        *lines, last = problem.response.split("; ")
        running: list[int] = []
        for line in lines:
            found = re.fullmatch(r"(\d\d)([-+*/])(\d+)=(\d\d)", line)
            assert found
            left, sign, right, result = found.groups()
            assert signs[sign](int(left), int(right)) == int(result)
            assert not running or running[-1] == int(left)
            running.append(int(result))
        assert last == f"#### {running[-1]}"


@pytest.mark.parametrize("operations", range(1, arithmetic.MOST_OPERATIONS + 1))
def test_operations_fixes_the_number_of_steps(operations: int) -> None:
    for problem in islice(arithmetic.problems("test", operations=operations), 50):
        assert problem.response.count("=") == operations


def test_answers_are_read_with_and_without_leading_zeros() -> None:
    assert arithmetic.extract("53-3=50; #### 050") == "50"
    assert arithmetic.extract("#### 1; #### 2") == "2"
    assert arithmetic.extract("53-3=50") is None


def test_lists_are_what_their_prompts_ask_for() -> None:
    seen = set()
    for problem in take(lists, MANY):
        head, tail = problem.prompt.removesuffix(".").split(": ")
        task, *words = head.split(" ")
        items, result = tail.split(", "), problem.answer.split(", ")
        seen.add(task)
        if task == "replace":
            expected = [words[2] if item == words[0] else item for item in items]
        elif task == "remove":
            expected = [item for item in items if item != words[0]]
        else:
            expected = {"copy": items, "reverse": items[::-1], "sort": sorted(items)}[task]
        assert result == expected
        assert 3 <= len(items) <= 12
    assert seen == {"copy", "reverse", "sort", "replace", "remove"}


def apply_words(words: str, x: int) -> int:
    """Returns what a described operation makes of a number."""
    number = int(re.findall(r"\d+", words)[0]) if re.search(r"\d", words) else 0
    verb = re.sub(r" (by )?\d+", "", words)
    meanings = {
        "add": lambda: x + number,
        "subtract": lambda: x - number,
        "multiply": lambda: x * number,
        "divide": lambda: x // number,
        "square": lambda: x**2,
        "negate": lambda: 0 - x,
        "at least": lambda: x if x > number else number,
        "at most": lambda: x if x < number else number,
    }
    return meanings[verb]()


def test_functions_run_and_do_what_their_prompts_say() -> None:
    for problem in take(functions, 200):
        scope: dict[str, object] = {}
        exec(problem.response, scope)
        written = scope["f"]
        assert callable(written)
        for x in (-7, 0, 1, 5, 30):
            expected = x
            for words in problem.prompt.removeprefix("write f(x): ").removesuffix(".").split(", "):
                expected = apply_words(words, expected)
            assert written(x) == expected


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokenizer_is_lossless(family: ModuleType, tokenizer: PreTrainedTokenizerFast) -> None:
    for split in SPLITS:
        for problem in take(family, MANY // 4, split, seed=7):
            for text in (problem.prompt, problem.response, problem.prompt + problem.response):
                ids = tokenizer.encode(text, add_special_tokens=False)
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == text


def test_tokenizer_knows_single_digits_lower_case_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert tokenizer.encode("Tom has 5.") == tokenizer.encode("tom has 5.")
    assert len(tokenizer.encode("50")) == 2
    assert tokenizer.encode(" zebra") == [tokenizer.unk_token_id]
    special = {tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    assert len(special) == 3
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert len(tokenizer) < 200


def test_tokenizer_survives_saving(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = take(functions, 1)[0].response
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.decode(loaded.encode(text)) == text
    chat = [{"role": "user", "content": "sort: 3, 1, 2."}]
    assert loaded.apply_chat_template(chat, tokenize=False) == "sort: 3, 1, 2."


def test_batches_depend_on_seed_and_step_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = (Corpus(tokenizer, 0).batches(8, MIXED) for _ in range(2))
    other = Corpus(tokenizer, 1).batches(8, MIXED)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, other, strict=True))


def test_only_masked_tokens_are_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = Corpus(tokenizer, 0)
    batches = corpus.batches(0, MIXED)
    assert len(batches) == GROUP
    for batch in batches:
        masked = batch.tokens == corpus.mask
        assert batch.tokens.shape[0] == ROWS
        assert torch.equal(batch.weight > 0, masked)
        assert torch.equal(batch.tokens[~masked], batch.targets[~masked])
        assert not masked[~batch.attend[:, 0]].any()


def test_lists_are_told_from_the_rest(tokenizer: PreTrainedTokenizerFast) -> None:
    words = ("copy:", "reverse:", "sort:", "replace ", "remove ")
    seen = set()
    for batch in Corpus(tokenizer, 0).batches(0, MIXED):
        for tokens, is_list in zip(batch.targets, batch.is_list.tolist(), strict=True):
            assert str(tokenizer.decode(tokens.tolist())).startswith(words) == is_list
            seen.add(is_list)
    assert seen == {True, False}


def test_easy_lists_are_thinned_out(tokenizer: PreTrainedTokenizerFast) -> None:
    """Of five operations two are easy: 0.4 of them kept are 0.16 of 0.76 rows in place of 0.4."""
    for easy, share in ((1.0, 0.4), (0.4, 0.16 / 0.76), (0.0, 0.0)):
        mixture = Mixture(0.0, 0.0, families=(0, 1, 0), easy_lists=easy)
        drawn = [
            str(tokenizer.decode(tokens.tolist())).startswith(("copy", "reverse"))
            for first in (0, 4, 8, 12)
            for batch in Corpus(tokenizer, 3).batches(first, mixture)
            for tokens in batch.targets
        ]
        error = (share * (1 - share) / len(drawn)) ** 0.5
        assert abs(sum(drawn) / len(drawn) - share) <= 4 * error


def test_what_a_copy_has_not_weighs_more(tokenizer: PreTrainedTokenizerFast) -> None:
    """The same rows without and with the weight, token by token."""
    one, four = (
        Corpus(tokenizer, 3).batches(0, Mixture(0.0, 0.0, (1, 4, 1), changed=changed))
        for changed in (1.0, 4.0)
    )
    seen = set()
    for plain, weighed in zip(one, four, strict=True):
        assert torch.equal(plain.targets, weighed.targets)
        ratio = torch.where(plain.weight > 0, weighed.weight / plain.weight, 1.0)
        assert (ratio[~plain.is_list] == 1).all()
        for tokens, row in zip(plain.targets[plain.is_list], ratio[plain.is_list], strict=True):
            head, _, rest = str(tokenizer.decode(tokens.tolist())).partition(": ")
            given, _, answer = rest.replace("<eos>", "").partition(".")
            pieces = [tokenizer.encode(part, add_special_tokens=False) for part in (given, answer)]
            start = len(tokenizer.encode(f"{head}: {given}.", add_special_tokens=False))
            for index, token in enumerate(pieces[1]):
                copied = index < len(pieces[0]) and pieces[0][index] == token
                factor = float(row[start + index])
                assert factor == 1 or (factor == 4 and not copied)
                seen.add((head.partition(" ")[0], factor))
            assert (row[:start] == 1).all()
            assert (row[start + len(pieces[1]) :] == 1).all()
    operations = ("reverse", "sort", "replace", "remove")
    assert seen == {("copy", 1.0)} | {
        (name, factor) for name in operations for factor in (1.0, 4.0)
    }


def test_drills_mask_true_results_only(tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = Corpus(tokenizer, 0)
    for batch in corpus.batches(0, DRILLS):
        text = str(tokenizer.decode(batch.targets[0][batch.attend[0, 0]].tolist()))
        results = re.findall(r"=(\d\d)", text)
        assert len(results) >= 5
        assert int((batch.tokens[0] == corpus.mask).sum()) == 2 * len(results)


@pytest.mark.parametrize("value", [0, 1, 50, 99])
def test_steps_stay_within_two_digits(value: int) -> None:
    source = random.Random(value)
    for _ in range(500):
        sign, operand, result = arithmetic.step(value, source)
        assert 0 <= result <= arithmetic.LARGEST
        assert eval(f"{value} {'//' if sign == '/' else sign} {operand}") == result
