"""What parallel decoding can reach on two families, by hand (2510.04767).

Every function takes `sizes`, the number of tokens that each step commits, as in (2, 2, 1); they
add up to n. Here every permutation counts as a shuffle, the unchanged one as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


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
