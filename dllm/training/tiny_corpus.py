"""The embedded model's tokenizer and data: problems, drills, and what is masked in them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import islice
from types import ModuleType

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dllm.eval.tasks import arithmetic, functions, lists
from dllm.eval.tasks.task import Problem

MASK, END, UNKNOWN = "<mask>", "<eos>", "<unk>"
# A token keeps the space before a word or after a comma, so that joining tokens gives the text.
_PIECE = r"#### |\n    |[.,:;] | ?[a-z]+|[0-9]| ?[^a-z0-9\s]|\s"
_SAMPLES = 4000

ROWS = 64  # in a batch
GROUP = 4  # batches drawn together: problems are sorted by length, so that little is padded
WIDTHS = (80, 96, 112, 128, 160)  # of batches; few, because each is compiled once
REGIONS = (32, 48, 64, 96)  # response slots
DEFAULT_REGION = 64
END_WEIGHT, RESULT_WEIGHT, CONTEXT_WEIGHT = 0.1, 3.0, 0.05
FAMILIES = (arithmetic, lists, functions)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Returns the tokenizer, its vocabulary read off the problem generators in a fixed order."""
    pieces = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    words = {str(digit) for digit in range(10)} | {" ", "+", "-", "*", "/", "="}
    for family in FAMILIES:
        for problem in islice(family.problems("train", seed=0), _SAMPLES):
            for text in (problem.prompt, problem.response):
                words |= {piece for piece, _ in pieces.pre_tokenize_str(text)}
    vocabulary = {word: index for index, word in enumerate([MASK, END, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        mask_token=MASK,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        chat_template="{{ messages[-1]['content'] }}",
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Mixture:
    """What the rows of a step are drawn from."""

    drills: float  # share of rows that are equations without a problem
    focus: float  # share of the other rows that ask for one result of a word problem
    families: tuple[float, float, float]  # weights of arithmetic, lists and functions
    easy_lists: float = 1.0  # share of lists to copy or reverse that are kept
    changed: float = 1.0  # weight of what a list's answer has and a copy has not


@dataclass(frozen=True)
class Row:
    """One training example before padding."""

    tokens: list[int]
    masked: list[bool]
    weight: list[float]  # of each token in the loss
    is_list: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows of one length; padding is at the right end and not attended to."""

    tokens: Tensor  # (B, L) int64 with masks in place
    targets: Tensor  # (B, L) int64
    weight: Tensor  # (B, L) float32, 0 where nothing is to be predicted
    attend: Tensor  # (B, 1, L) bool
    is_list: Tensor  # (B,) bool


class Corpus:
    """A stream of batches that depends on the seed and the step alone, so that it can resume."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        known = tokenizer.get_vocab()
        self.mask, self.end, self.equals = known[MASK], known[END], known["="]
        self.digits = {known[str(digit)] for digit in range(10)}

    def batches(self, first: int, mixture: Mixture) -> list[Batch]:
        """Returns the batches of steps first .. first + GROUP - 1.

        Every batch has its share of drills: batches of drills alone, between batches of
        problems alone, are forgotten as fast as they are learnt.
        """
        source = random.Random(f"{self.seed}-{first}")
        num_drills = round(ROWS * mixture.drills)
        problems = [self._row(source, mixture) for _ in range((ROWS - num_drills) * GROUP)]
        problems.sort(key=lambda row: len(row.tokens))
        batches = []
        for index in range(GROUP):
            part = problems[index * (ROWS - num_drills) : (index + 1) * (ROWS - num_drills)]
            longest = max((len(row.tokens) for row in part), default=WIDTHS[0])
            width = next(width for width in WIDTHS if width >= longest)
            part += [self._drill(width, source) for _ in range(num_drills)]
            batches.append(self._batch(part, width))
        source.shuffle(batches)
        return batches

    def _row(self, source: random.Random, mixture: Mixture) -> Row:
        if source.random() < mixture.focus:
            return self._focus(_draw(arithmetic, source), source)
        family = source.choices(FAMILIES, weights=mixture.families)[0]
        if family is lists:
            return self._list(_draw_list(source, mixture.easy_lists), source, mixture.changed)
        return self._problem(_draw(family, source), source)

    def _drill(self, width: int, source: random.Random) -> Row:
        """Equations on their own, of which only the results are masked.

        The tables of sums and products have no first-order gradient while the rest of a response
        is masked; without drills the digits stay at chance.
        """
        tokens: list[int] = []
        masked: list[bool] = []
        while True:
            value = source.randint(0, arithmetic.LARGEST)
            line = arithmetic.equation(value, *arithmetic.step(value, source))
            known = self._encode(line[:-2])
            if len(tokens) + len(known) + 3 > width:
                return Row(tokens, masked, [RESULT_WEIGHT] * len(tokens))
            tokens += known + self._encode(line[-2:] + "; ")
            masked += [False] * len(known) + [True, True, False]

    def _focus(self, problem: Problem, source: random.Random) -> Row:
        """A word problem up to one of its results, which is what the loss looks at.

        Drills teach the tables, this to use them in the middle of a response.
        """
        prompt, answer, region = self._parts(problem, source)
        result = source.choice([i + 1 for i, token in enumerate(answer) if token == self.equals])
        weight = [CONTEXT_WEIGHT] * region
        weight[result : result + 2] = [RESULT_WEIGHT] * 2
        return Row(
            prompt + answer + [self.end] * (region - len(answer)),
            [False] * (len(prompt) + result) + [True] * (region - result),
            [0.0] * len(prompt) + weight,
        )

    def _problem(self, problem: Problem, source: random.Random) -> Row:
        prompt, answer, region = self._parts(problem, source)
        response = answer + [self.end] * (region - len(answer))
        weight = [END_WEIGHT if token == self.end else 1.0 for token in response]
        weight[len(answer)] = 1.0  # where the answer ends matters as much as any token
        for index in range(2, len(answer)):
            if response[index] in self.digits:
                weight[index] = RESULT_WEIGHT
        hidden = _mask(region, len(answer), source)
        return Row(prompt + response, [False] * len(prompt) + hidden, [0.0] * len(prompt) + weight)

    def _list(self, problem: Problem, source: random.Random, changed: float) -> Row:
        """A list whose answer weighs `changed` times where the list in the prompt is not copied.

        Most tokens of `replace` and `remove` are copies, which are learnt first and are all that is
        learnt where the few others count no more than they.
        """
        row = self._problem(problem, source)
        prompt, answer = self._encode(problem.prompt), self._encode(problem.response)
        given = self._encode(problem.prompt.partition(": ")[2].removesuffix("."))
        weight = list(row.weight)
        for index, token in enumerate(answer):
            if token != (given[index] if index < len(given) else None):
                weight[len(prompt) + index] *= changed
        return replace(row, weight=weight, is_list=True)

    def _parts(self, problem: Problem, source: random.Random) -> tuple[list[int], list[int], int]:
        """Returns prompt, answer and how many slots: mostly the default or the least that fit."""
        prompt, answer = self._encode(problem.prompt), self._encode(problem.response)
        fitting = [region for region in REGIONS if region > len(answer)]
        if source.random() < 0.4 and len(answer) < DEFAULT_REGION:
            return prompt, answer, DEFAULT_REGION
        return prompt, answer, fitting[0] if source.random() < 0.9 else source.choice(fitting)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _batch(self, rows: list[Row], width: int) -> Batch:
        def padded(values: list[list[float]], fill: float) -> Tensor:
            return torch.tensor([value + [fill] * (width - len(value)) for value in values])

        targets = padded([[float(t) for t in row.tokens] for row in rows], self.end).long()
        masked = padded([[float(m) for m in row.masked] for row in rows], 0).bool()
        weight = padded([row.weight for row in rows], 0.0) * masked
        real = padded([[1.0] * len(row.tokens) for row in rows], 0).bool()
        shown = targets.masked_fill(masked, self.mask)
        listed = torch.tensor([row.is_list for row in rows])
        return Batch(shown, targets, weight, real[:, None], listed)


def _mask(region: int, length: int, source: random.Random) -> list[bool]:
    """Returns which slots are masked: as block decoding sees them, or at a uniform rate."""
    if source.random() < 0.6:
        cut = source.randint(0, length)
        block = source.choice((8, 16, 16, 32, 64))
        end, rate = cut + block, source.random()
        return [s >= end or (s >= cut and source.random() < rate) for s in range(region)]
    rate = source.uniform(0.02, 1.0)
    return [source.random() < rate for _ in range(region)]


def _draw(family: ModuleType, source: random.Random) -> Problem:
    problem: Problem = next(family.problems("train", seed=source.getrandbits(48)))
    return problem


def _draw_list(source: random.Random, easy: float) -> Problem:
    """Returns a list problem; of those to copy or to reverse, a share `easy` is kept."""
    while True:
        problem = _draw(lists, source)
        if not problem.prompt.startswith(("copy", "reverse")) or source.random() < easy:
            return problem
