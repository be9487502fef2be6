"""Tokens drawn inside the kernel of a step's statistics: those that are drawn outside of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.kernels import statistics
from dllm.state.candidates import Candidates, Sampling
from dllm.state.noise import CounterNoise
from tests.support.models import golden_model, random_prompts
from tests.support.statistics import random_logits
from tests.support.ulps import NARROW

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
MASK = 17


def both(sampling: Sampling, logits: Tensor, *more: Any) -> tuple[Candidates, Candidates]:
    """Returns what is proposed operation by operation, and by the kernel."""
    width = logits.shape[1] if not more else 7
    columns = torch.arange(30, 30 + width, device=DEVICE).expand(len(logits), width)
    step = torch.arange(len(logits), device=DEVICE) * 5
    noise = CounterNoise(torch.tensor([3, -(2**40), 2**62][: len(logits)], device=DEVICE))
    found = []
    for there in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(statistics, "has_kernel", lambda device, there=there: there)
            found.append(sampling.propose(logits.to(DEVICE), noise, columns, step, *more))
    usual, quick = found
    assert usual.measured is None
    assert quick.measured is not None
    return usual, quick


@pytest.mark.few(8)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("confidence", ["raw", "tempered"])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 1.7])
@pytest.mark.parametrize("size", [(1, 1, 20), (2, 4, 500), (3, 2, 2049), (1, 2, 9001)])
def test_tokens_and_statistics(
    size: Any, temperature: float, confidence: Any, dtype: torch.dtype
) -> None:
    sampling = Sampling(MASK, temperature=temperature, confidence=confidence, lean=True)
    usual, quick = both(sampling, random_logits(*size).to(dtype))
    assert_alike(usual, quick)
    if size[1] > 1:
        some = torch.tensor([[1, 0]] * size[0], device=DEVICE)
        assert_alike(usual.at(some), quick.at(some))
        row = torch.tensor([size[0] - 1], device=DEVICE)
        assert_alike(usual.of_rows(row), quick.of_rows(row))


def assert_alike(usual: Candidates, quick: Candidates) -> None:
    assert torch.equal(quick.token, usual.token)
    for name in ("confidence", "entropy", "margin", "gap"):
        found = getattr(quick, name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, getattr(usual, name), rtol=2e-5, atol=2e-6)
    others = usual.token.clone().clamp(max=usual.logits.shape[-1] - 2) + 1
    torch.testing.assert_close(quick.log_prob(others), usual.log_prob(others), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("confidence", ["raw", "tempered"])
def test_tokens_of_columns_that_have_logits(confidence: Any) -> None:
    places = torch.tensor([[1, 2, 6], [0, 3, 5]], device=DEVICE)
    sampling = Sampling(MASK, temperature=0.8, confidence=confidence, lean=True)
    usual, quick = both(sampling, random_logits(2, 3, 300), places)
    assert_alike(usual, quick)
    assert usual.token.shape == (2, 7)


def test_noise_is_not_that_of_another_row_step_or_column() -> None:
    even = torch.zeros(3, 4, 3000)
    _, quick = both(Sampling(MASK, temperature=1.0, lean=True), even)
    assert len(set(quick.token.flatten().tolist())) == 12


def test_the_mask_and_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((2, 64, 40), -torch.inf)
    logits[..., MASK] = 50.0
    logits[..., [3, 21]] = 0.0
    logits[0, 0, [3, 21]] = -torch.inf
    usual, quick = both(Sampling(MASK, temperature=1.0, lean=True), logits)
    assert torch.equal(quick.token, usual.token)
    assert quick.token[0, 0] == 0
    assert {*quick.token.flatten().tolist()} == {0, 3, 21}


def test_a_row_that_is_no_number_breaks_alone() -> None:
    logits = random_logits(1, 3, 200)
    logits[0, 1, 4] = torch.nan
    _, quick = both(Sampling(MASK, temperature=1.0, lean=True), logits)
    assert quick.confidence.isnan().tolist() == [[False, True, False]]
    assert ((quick.token >= 0) & (quick.token < 200) & (quick.token != MASK)).all()


@pytest.mark.parametrize(
    "options", [{"top_p": 0.9}, {"top_k": 5}, {"forbidden_token_ids": (3,)}, {"lean": False}]
)
def test_filtered_tokens_are_drawn_operation_by_operation(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "has_kernel", lambda device: True)
    sampling = Sampling(**{"mask_token_id": MASK, "lean": True, "temperature": 0.5, **options})
    step = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    columns = torch.arange(4, device=DEVICE)[None]
    made = sampling.propose(random_logits(1, 4, 50).to(DEVICE), CounterNoise(step), columns, step)
    assert made.measured is None


def test_noise_of_ones_own_is_drawn_operation_by_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    class Even:
        def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
            return torch.full((*columns.shape, vocab_size), 0.5, dtype=torch.float64, device=DEVICE)

    monkeypatch.setattr(statistics, "has_kernel", lambda device: True)
    step = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    columns, logits = torch.arange(4, device=DEVICE)[None], random_logits(1, 4, 50).to(DEVICE)
    noise: Any = Even()
    made = Sampling(MASK, 0.5, lean=True).propose(logits, noise, columns, step)
    assert made.measured is None
    assert torch.equal(
        made.token, logits.index_fill(-1, torch.tensor([MASK], device=DEVICE), -99).argmax(-1)
    )


@pytest.mark.skipif(DEVICE.type == "cuda", reason="makes its tensors on the CPU")
@pytest.mark.few(2)
@pytest.mark.parametrize("confidence", ["raw", "tempered"])
@pytest.mark.parametrize("scheduler", ["fixed_quota", "threshold:0.4", "localleap"])
def test_generations_at_a_temperature(
    scheduler: str, confidence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = golden_model("llada_gqa", "float32")
    options: dict[str, Any] = {
        "scheduler": scheduler,
        "temperature": 0.7,
        "confidence": confidence,
        "max_new_tokens": 16,
        "block_length": 8,
        "seed": 4,
    }
    expected = dllm.generate(model, random_prompts(2), **options).sequences
    monkeypatch.setattr(statistics, "has_kernel", lambda device: True)
    drawn: list[Any] = []
    usual = statistics.in_one_pass

    def watched(*given: Any) -> Any:
        drawn.append(given[2:])
        return usual(*given)

    monkeypatch.setattr(statistics, "in_one_pass", watched)
    assert dllm.generate(model, random_prompts(2), **options).sequences == expected
    assert drawn
    assert all(draw for draw in drawn)
