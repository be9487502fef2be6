"""Noise by counter: uniform, reproducible, and a function of nothing but its arguments."""

from __future__ import annotations

import torch

from dllm.state.noise import CounterNoise


def test_noise_is_uniform_and_independent() -> None:
    noise = CounterNoise(torch.tensor([0, 1, 2, 3]))
    columns = torch.arange(64).expand(4, 64)
    drawn = noise.tokens(columns, torch.zeros(4, dtype=torch.int64), 500)
    assert drawn.dtype == torch.float64
    assert float(drawn.min()) > 0
    assert float(drawn.max()) < 1
    flat = drawn.flatten()
    counts = torch.histc(flat, bins=20, min=0, max=1)
    expected = flat.numel() / 20
    assert float(((counts - expected) ** 2 / expected).sum()) < 43.8, "19 degrees, p = 0.001"
    for dim in range(3):  # neighbours in row, column and token are not correlated
        size = drawn.shape[dim] - 1
        pair = [drawn.narrow(dim, start, size).flatten() for start in (0, 1)]
        assert abs(float(torch.corrcoef(torch.stack(pair))[0, 1])) < 0.012


def test_noise_depends_on_seed_step_and_column() -> None:
    columns = torch.tensor([[5, 6], [5, 6]])
    seeds, steps = torch.tensor([9, 9]), torch.tensor([1, 2])
    masked = torch.ones(2, 2, dtype=torch.bool)
    drawn = CounterNoise(seeds).columns(columns, steps, masked)
    assert len(set(drawn.flatten().tolist())) == 4
    again = CounterNoise(seeds[1:]).columns(columns[1:, 1:], steps[1:], masked[1:, 1:])
    assert float(again) == float(drawn[1, 1])
    assert float(drawn.max()) < 1
