"""The training data of the embedded model: problems, drills, and what is masked in them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dllm.eval import arithmetic, functions, lists
from dllm.eval.problem import Problem

ROWS = 64  # in a batch
GROUP = 4  # batches drawn together and sorted by length, so that little is padded
REGIONS = (32, 48, 64, 96)  # response slots; most rows have 64
END_WEIGHT, RESULT_WEIGHT = 0.1, 3.0


@dataclass(frozen=True)
class Row:
    """One training example before padding."""

    tokens: list[int]
    masked: list[bool]
    weight: list[float]  # of each token in the loss


@dataclass(frozen=True)
class Batch:
    """Rows of one length; padding is at the right end and not attended to."""

    tokens: Tensor  # (B, L) int64 with masks in place
    targets: Tensor  # (B, L) int64
    weight: Tensor  # (B, L) float32, 0 where nothing is to be predicted
    attend: Tensor  # (B, 1, L) bool


class Corpus:
    """A stream of batches that depends on the seed and the step alone, so that it can resume."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.mask, self.end = int(tokenizer.mask_token_id), int(tokenizer.eos_token_id)
        self.digits = set(tokenizer.convert_tokens_to_ids([str(digit) for digit in range(10)]))

    def batches(self, first: int, drills: float) -> list[Batch]:
        """Returns the batches of steps first .. first + GROUP - 1; `drills` is their share."""
        source = random.Random(f"{self.seed}-{first}")
        rows = [self._row(source, drills) for _ in range(ROWS * GROUP)]
        rows.sort(key=lambda row: len(row.tokens))
        parts = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
        source.shuffle(parts)
        return [self._batch(part) for part in parts]

    def _row(self, source: random.Random, drills: float) -> Row:
        if source.random() < drills:
            return self._drill(source)
        family = source.choices((arithmetic, lists, functions), weights=(6, 2, 2))[0]
        problem = next(islice(family.problems("train", seed=source.getrandbits(48)), 1))
        return self._problem(problem, source)

    def _drill(self, source: random.Random) -> Row:
        """Equations on their own, of which only the results are masked.

        The tables of sums and products have no first-order gradient while the rest of a response
        is masked; without drills the digits stay at chance (docs: the model card).
        """
        lines = []
        for _ in range(5):
            value = source.randint(0, arithmetic.LARGEST)
            lines.append(arithmetic.equation(value, *arithmetic.step(value, source)))
        tokens: list[int] = []
        masked: list[bool] = []
        for line in lines:
            question, result = line.split("=")
            known = self._encode(question + "=")
            tokens += known + self._encode(result + "; ")
            masked += [False] * len(known) + [True, True, False]
        return Row(tokens, masked, [RESULT_WEIGHT] * len(tokens))

    def _problem(self, problem: Problem, source: random.Random) -> Row:
        prompt, answer = self._encode(problem.prompt), self._encode(problem.response)
        fitting = [region for region in REGIONS if region > len(answer)]
        region = 64 if source.random() < 0.7 and 64 in fitting else source.choice(fitting)
        response = answer + [self.end] * (region - len(answer))
        weight = [END_WEIGHT if token == self.end else 1.0 for token in response]
        if len(answer) < region:
            weight[len(answer)] = 1.0  # where the answer ends matters as much as any token
        for index in range(2, len(answer)):
            if response[index] in self.digits:
                weight[index] = RESULT_WEIGHT
        hidden = _mask(region, source)
        return Row(
            prompt + response,
            [False] * len(prompt) + hidden,
            [0.0] * len(prompt) + weight,
        )

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _batch(self, rows: list[Row]) -> Batch:
        width = -(-max(len(row.tokens) for row in rows) // 16) * 16

        def padded(values: list[list[float]], fill: float) -> Tensor:
            return torch.tensor([value + [fill] * (width - len(value)) for value in values])

        targets = padded([[float(t) for t in row.tokens] for row in rows], self.end).long()
        masked = padded([[float(m) for m in row.masked] for row in rows], 0).bool()
        weight = padded([row.weight for row in rows], 0.0) * masked
        real = padded([[1.0] * len(row.tokens) for row in rows], 0).bool()
        return Batch(targets.masked_fill(masked, self.mask), targets, weight, real[:, None])


def _mask(region: int, source: random.Random) -> list[bool]:
    """Returns which slots are masked: as block decoding sees them, or at a uniform rate."""
    if source.random() < 0.6:
        cut = source.randrange(0, region)
        block = source.choice((8, 16, 16, 32, 64))
        rate = source.random()
        return [
            slot >= cut + block or (slot >= cut and source.random() < rate)
            for slot in range(region)
        ]
    rate = source.uniform(0.02, 1.0)
    return [source.random() < rate for _ in range(region)]


def stream(corpus: Corpus, first: int, drills: float) -> Iterator[Batch]:
    """Yields the batches of one group of steps."""
    yield from corpus.batches(first, drills)
