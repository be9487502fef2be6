"""A model that knows every right answer: the limit of what unmasking in parallel can do.

It returns the exact conditionals of the uniform distribution over a set of answers, given the
tokens that are there. One token at a time it is never wrong; whatever is lost is lost by parallel
decoding (2510.04767). For two families the limits are there by hand as well: their functions take
`sizes`, the number of tokens that each step commits, as in (2, 2, 1), which add up to n. There
every permutation counts as a shuffle, the unchanged one too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.models.wrap import WrappedModel, wrap
from dllm.output import GenerationOutput

_SPECIAL = ("<mask>", "<end>", "<start>")  # their places are their token ids; words come after
_MASK, _END, _START = range(3)
MOST_OUTPUTS = 50_000  # every pass compares each row with each output; 8! orders are 40,320


@dataclass(frozen=True)
class Ideal:
    """The uniform distribution over answers of one length, each word a token."""

    outputs: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.outputs or not self.outputs[0]:
            raise ValueError(f"outputs={self.outputs!r} must hold at least one answer with tokens")
        if len(self.outputs) > MOST_OUTPUTS:
            raise ValueError(f"more than {MOST_OUTPUTS:,} outputs: take a shorter line")
        if len({len(output) for output in self.outputs}) > 1:
            raise ValueError("outputs must be of one length: a token more or less moves the others")
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError("outputs must differ: each counts once")

    @classmethod
    def over(cls, outputs: Iterable[Sequence[str]]) -> Ideal:
        """Returns the distribution over outputs, such as `instance.outputs()`."""
        return cls(tuple(map(tuple, islice(outputs, MOST_OUTPUTS + 1))))

    @property
    def num_tokens(self) -> int:
        """The length of each answer."""
        return len(self.outputs[0])

    @property
    def prompt(self) -> list[int]:
        """The token that every answer follows."""
        return [_START]

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """All tokens in the order of their ids."""
        return (*_SPECIAL, *sorted({word for output in self.outputs for word in output}))

    @cached_property
    def marginals(self) -> Tensor:
        """The probability of each word at each place before anything is there, (N, V) float64."""
        return self._indicators.mean(0).view(self.num_tokens, -1)

    @property
    def total_correlation(self) -> float:
        """The bits lost by drawing every token from its own marginal, 0 if none is (2510.04767).

        The marginals' entropies less that of the outputs.
        """
        entropies = torch.special.entr(self.marginals).sum() / math.log(2)
        return max(float(entropies) - math.log2(len(self.outputs)), 0.0)

    @cached_property
    def model(self) -> WrappedModel:
        """The model, for `dllm.generate(ideal.model, [ideal.prompt], ...)`."""
        return wrap(
            self._logits,
            mask_token_id=_MASK,
            eos_token_id=_END,
            vocab_size=len(self.vocabulary),
            max_length=len(self.prompt) + self.num_tokens,
            name="ideal",
        )

    def answers(self, out: GenerationOutput) -> list[tuple[str, ...]]:
        """Returns the words of each row that `model` wrote."""
        start = len(self.prompt)
        return [tuple(self.vocabulary[token] for token in row[start:]) for row in out.sequences]

    def accuracy(self, out: GenerationOutput) -> float:
        """Returns the part of the rows that are right."""
        known, answers = set(self.outputs), self.answers(out)
        return sum(answer in known for answer in answers) / len(answers)

    @cached_property
    def _indicators(self) -> Tensor:
        """Which token each output has at each place, (S, N * V) float64 of 0 and 1."""
        ids = {word: index for index, word in enumerate(self.vocabulary)}
        tokens = torch.tensor([[ids[word] for word in output] for output in self.outputs])
        return F.one_hot(tokens, len(self.vocabulary)).double().flatten(1)

    def _logits(self, tokens: Tensor) -> Tensor:
        """Returns the log of how many outputs go on in each way, (B, L, V) float64.

        Once tokens contradict every output, those that agree with the most of them count: the row
        is lost anyway, and logits have to be finite somewhere.
        """
        start, num_words = len(self.prompt), len(self.vocabulary)
        if tokens.shape[1] != start + self.num_tokens:
            raise ValueError(
                f"the canvas has {tokens.shape[1] - start} tokens after the prompt, but the ideal "
                f"model's answers have {self.num_tokens}: max_new_tokens={self.num_tokens}"
            )
        indicators = self._indicators.to(tokens.device)
        there = F.one_hot(tokens[:, start:], num_words).double().flatten(1)
        agreement = there @ indicators.T  # (B, S); the mask is in no output and agrees with none
        goes_on = agreement == agreement.amax(-1, keepdim=True)
        counts = (goes_on.double() @ indicators).view(len(tokens), self.num_tokens, num_words)
        return F.pad(counts.log(), (0, 0, start, 0))


def shuffle_sampled(sizes: Sequence[int]) -> Fraction:
    """Returns how often tokens drawn from their marginals are a permutation.

    All at once n!/n^n, two at a time (n-1)!!/n!!, one at a time 1.
    """
    left, right = sum(sizes), Fraction(1)
    for size in sizes:  # `left` names are left, alike at every place: the drawn ones must differ
        right *= Fraction(math.perm(left, size), left**size)
        left -= size
    return right


def replace_sampled(sizes: Sequence[int]) -> Fraction:
    """Returns how often tokens drawn from their marginals replace exactly one name.

    All at once ((n-1)/n)^(n-1), one at a time 1.
    """
    left, right, none_yet = sum(sizes), Fraction(0), Fraction(1)
    for size in sizes:  # with one new name there, all others are certain
        here = Fraction(1, left)
        right += none_yet * size * here * (1 - here) ** (size - 1)
        none_yet *= (1 - here) ** size
        left -= size
    return right


def replace_greedy(sizes: Sequence[int]) -> Fraction:
    """Returns how often the most probable tokens replace exactly one name, ties drawn at random.

    The old names win until the last step, so that its size alone decides: one token 1, two 1/2
    (each is old or new alike), more 0.
    """
    return {1: Fraction(1), 2: Fraction(1, 2)}.get(sizes[-1], Fraction(0))


def shuffle_bits(num_names: int) -> float:
    """Returns the total correlation of all permutations in bits."""
    return num_names * math.log2(num_names) - math.log2(math.factorial(num_names))


def replace_bits(num_names: int) -> float:
    """Returns the total correlation of all replacements of one name in bits; it nears log2(e)."""
    if num_names == 1:
        return 0.0
    return (num_names - 1) * (math.log2(num_names) - math.log2(num_names - 1))
