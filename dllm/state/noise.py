"""Uniform noise that depends on a row's seed, its step and the column, and on nothing else."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


class Noise(Protocol):
    """A source of uniform noise in (0, 1) for sampled tokens and random commit orders."""

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        """Returns (B, W, V) float64 for columns (B, W) at each row's step, (B,) or (B, W)."""
        ...

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        """Returns (B, W) float32 for columns (B, W), of which `masked` (B, W) are open."""
        ...


class CounterNoise:
    """Noise by counter: a hash of (row seed, step, column, token id).

    No generator state, so a row's noise does not change with the batch around it, and no loop
    over rows or host transfer is needed. The hash is SplitMix64's finaliser (Steele, Lea and
    Flood, OOPSLA 2014), applied once for each of the four words.
    """

    def __init__(self, seeds: Tensor) -> None:
        self.seeds = seeds  # (B,) int64

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        tokens = torch.arange(1, vocab_size + 1, device=columns.device)
        return _uniform(_mix(self.words(columns, step)[..., None] + tokens * _GOLDEN_GAMMA))

    def columns(self, columns: Tensor, step: Tensor, masked: Tensor) -> Tensor:
        return _uniform(self.words(columns, step)).float().clamp_(max=1 - 2**-24)

    def of_rows(self, rows: Tensor) -> CounterNoise:
        """Returns the noise of some rows (n,) int64."""
        return CounterNoise(self.seeds[rows])

    def words(self, columns: Tensor, step: Tensor) -> Tensor:
        """Returns (B, W) int64, of which the noise of columns (B, W) and their tokens is made.

        At each row's step (B,), or at those of each column (B, W).
        """
        step = step if step.dim() == columns.dim() else step[:, None]
        row = _mix(_mix(self.seeds)[:, None] + (step + 1) * _GOLDEN_GAMMA)
        return _mix(row + (columns + 1) * _GOLDEN_GAMMA)


def _mix(word: Tensor) -> Tensor:
    word = (word ^ _shift_right(word, 30)) * _MIX_1
    word = (word ^ _shift_right(word, 27)) * _MIX_2
    return word ^ _shift_right(word, 31)


def _shift_right(word: Tensor, bits: int) -> Tensor:
    """Shifts int64 words as if they were unsigned."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _uniform(word: Tensor) -> Tensor:
    """Maps 64 random bits to float64 in (0, 1), both ends excluded."""
    return (_shift_right(word, 11).double() + 0.5) * 2.0**-53
