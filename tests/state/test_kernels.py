"""The one-pass statistics against float64, by the kernel itself: interpreted where no GPU is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm.kernels import statistics
from dllm.kernels.statistics import Statistics, has_kernel, in_one_pass
from dllm.schedulers import registry
from dllm.state import candidates as candidates_module
from dllm.state.candidates import Candidates, Sampling
from dllm.state.noise import CounterNoise
from tests.support.laws import options_of, suited
from tests.support.models import golden_model, random_prompts
from tests.support.statistics import NARROW, NUMBERS, assert_same, in_torch, random_logits

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WAYS: list[Callable[[Tensor, int], Statistics]] = [in_one_pass, in_torch]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy


@pytest.mark.few(10)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("size", [(1, 1, 2), (2, 3, 128), (1, 2, 2048), (1, 2, 2049), (1, 1, 9001)])
def test_equal_to_float64(size: Any, dtype: torch.dtype, way: Any) -> None:
    logits = random_logits(*size).to(DEVICE, dtype)
    for mask in {0, size[-1] // 2, size[-1] - 1}:
        assert_same(way(logits, mask), logits, mask)


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_ties_and_impossible_tokens(way: Any, data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 40))
    mask = data.draw(st.integers(0, width - 1))
    value = st.sampled_from([-torch.inf, -3.0, 0.0, 0.0, 2.0, 88.0, -120.0])
    row = st.lists(value, min_size=width, max_size=width).filter(
        lambda values: any(v > -torch.inf for at, v in enumerate(values) if at != mask)
    )
    rows = data.draw(st.lists(row, min_size=1, max_size=3))
    logits = torch.tensor([rows], device=DEVICE)
    assert_same(way(logits, mask), logits, mask)


@pytest.mark.parametrize("way", WAYS)
def test_ties_between_parts_of_the_vocabulary(way: Any) -> None:
    logits = torch.zeros(1, 4, 7000, device=DEVICE)
    logits[0, 0, [6999, 2500, 4100]] = 5.0
    logits[0, 1, [0, 6000]] = 5.0  # the mask is the first of equal ones
    logits[0, 2, 4096] = 5.0
    logits[0, 3, [100, 100 + 2048, 100 + 4096]] = 5.0  # all in one lane of the kernel
    found = way(logits, 0)
    assert found.token.tolist() == [[2500, 6000, 4096, 100]]
    assert found.second.tolist() == [[5.0, 5.0, 0.0, 5.0]]
    assert_same(found, logits, 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_sure_row_and_an_even_one(way: Any) -> None:
    logits = torch.zeros(1, 2, 5000, device=DEVICE)
    logits[0, 0, 7] = 60.0
    found = way(logits, 3)
    assert found.entropy[0, 0] < 1e-20
    torch.testing.assert_close(found.entropy[0, 1].cpu(), torch.tensor(5000.0).log())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", [0, 3, 2050])
def test_what_is_no_number_breaks_its_row_alone(way: Any, place: int) -> None:
    logits = random_logits(1, 3, 2100).to(DEVICE)
    logits[0, 1, place] = torch.nan
    found = way(logits, 3)
    for name in NUMBERS:
        assert getattr(found, name).isnan().tolist() == [[False, True, False]]
    assert ((found.token >= 0) & (found.token < 2100) & (found.token != 3)).all()


@pytest.mark.parametrize("way", WAYS)
def test_infinite_and_empty_rows_have_no_confidence(way: Any) -> None:
    logits = torch.full((1, 2, 100), -torch.inf, device=DEVICE)
    logits[0, 1, 5] = torch.inf
    for mask, first in ((0, 1), (9, 0)):
        found = way(logits, mask)
        assert not (found.logit - found.normaliser).exp().isfinite().any()
        assert found.token.tolist() == [[first, 5]]
        assert found.normaliser.tolist() == [[-torch.inf, torch.inf]]


@pytest.mark.parametrize("way", WAYS)
def test_rows_anywhere_in_memory(way: Any) -> None:
    whole = random_logits(3, 5, 300, 2).to(DEVICE)
    rows = whole[..., 0].contiguous()
    for logits in (whole[..., 0], rows[1:, 2:4], rows[:, ::2], rows.transpose(0, 1), rows[:1]):
        assert_same(way(logits, 7), logits, 7)


def test_no_rows() -> None:
    found = in_one_pass(torch.zeros(2, 0, 50, device=DEVICE), 3)
    assert found.token.shape == found.entropy.shape == (2, 0)


def test_where_there_is_a_kernel() -> None:
    assert has_kernel(torch.device("cuda"))
    assert not has_kernel(torch.device("cpu"))
    logits = random_logits(1, 2, 50)
    assert_same(in_torch(logits, 3), logits, 3)
    assert in_torch(logits.double(), 3).entropy.dtype == torch.float64


@cache
def both(wide: bool) -> tuple[Candidates, Candidates]:
    """Returns the candidates of logits as they are made anywhere, and by the kernel."""
    logits = random_logits(2, 4, 500).bfloat16()
    columns = torch.arange(6).expand(2, 6)
    places = None if wide else torch.tensor([[1, 2, 4, 5], [0, 1, 3, 5]])
    columns = columns[:, :4] if wide else columns
    step = torch.zeros(2, dtype=torch.int64)
    sampling = Sampling(mask_token_id=17, lean=True)
    usual = sampling.propose(logits, CounterNoise(step), columns, step, places)
    with pytest.MonkeyPatch.context() as patch:
        use_kernel(patch)
        found = sampling.propose(logits.to(DEVICE), CounterNoise(step), columns, step, places)
    assert usual.measured is None
    assert found.measured is not None
    return usual, found


def use_kernel(patch: pytest.MonkeyPatch, way: Any = in_one_pass) -> None:
    patch.setattr(statistics, "has_kernel", lambda device: True)
    patch.setattr(statistics, "in_one_pass", way)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="makes its tensors on the CPU")
@pytest.mark.parametrize("wide", [True, False])
def test_candidates_say_the_same(wide: bool) -> None:
    some = torch.tensor([[1, 2], [3, 0]])
    row = torch.tensor([1])
    for usual, found in (
        both(wide),
        (both(wide)[0].at(some), both(wide)[1].at(some)),
        (both(wide)[0].of_rows(row), both(wide)[1].of_rows(row)),
    ):
        assert torch.equal(usual.token, found.token)
        close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
        for name in ("confidence", "entropy", "margin", "gap"):
            close(getattr(found, name), getattr(usual, name))
        close(found.log_prob(usual.token + 1), usual.log_prob(usual.token + 1))


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.9},
        {"top_k": 5},
        {"forbidden_token_ids": (3,)},
        {"deferred_token_ids": (3,)},
        {"dtype": torch.float64},
        {"lean": False},
    ],
)
def test_what_reshapes_the_distribution_is_not_measured(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError

    use_kernel(monkeypatch, never)
    step = torch.zeros(1, dtype=torch.int64)
    given = Sampling(**{"mask_token_id": 17, "lean": True, **options})
    columns = torch.arange(4)[None]
    found = given.propose(random_logits(1, 4, 50), CounterNoise(step), columns, step)
    assert found.measured is None


class Guarded(Candidates):
    """Candidates whose logits nobody else reads once they are measured."""

    def __getattribute__(self, name: str) -> Any:
        if name == "logits" and self.measured is not None:
            reader = sys._getframe(1).f_code
            assert reader.co_filename == candidates_module.__file__, reader.co_name
        return super().__getattribute__(name)


@pytest.mark.parametrize("scheduler", sorted({*registry.names()} - {"renoise"}))  # no masks
def test_schedulers_decide_the_same(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that reads logits themselves must say so: here they may be narrow."""
    model, used = suited(golden_model("llada_gqa", "bfloat16"), scheduler), []
    options = options_of(scheduler, max_new_tokens=8, block_length=4, seed=0)
    if scheduler == "learn2pd":
        options["scheduler"] = {"name": scheduler, "foreign": True}
    elif scheduler == "adablock":
        options["scheduler"] = {"name": scheduler, "delimiters": (6, 47, 113)}
    prompts = random_prompts(2, low=3, high=8)
    expected = dllm.generate(model, prompts, **options)

    def measured(logits: Tensor, mask: int) -> Statistics:
        used.append(logits.dtype)
        return in_torch(logits, mask)

    use_kernel(monkeypatch, measured)
    monkeypatch.setattr(candidates_module, "Candidates", Guarded)
    found = dllm.generate(model, prompts, **options)
    assert found.sequences == expected.sequences
    assert found.trace.commits(0) == expected.trace.commits(0)
    built = registry.create(options["scheduler"])
    reads = built.needs(8, 4).reads_logits or built.without_mask  # then the kernel is left out
    assert bool(used) != reads


WIDTHS = """
import sys, torch
from dllm.state.candidates import Candidates
torch.manual_seed(0)
found = []
few = 5.0 * (torch.rand(2, 3, 7000) < 1e-3)  # not randn, whose bits depend on the CPU
for logits in (24 * torch.rand(2, 3, 9001), few, 9 * torch.rand(2, 3, 126)):
    for token in (logits.argmax(-1), logits.argmin(-1)):
        made = Candidates(logits, token)
        # Entropy is a difference of numbers around 1, and has their ulps.
        found += [made.confidence, made.margin, made.entropy + 1]
torch.save(found, sys.argv[1])
"""


def test_no_register_width_decides(tmp_path: Path) -> None:
    """What a threshold compares is the same to a few ulps however a CPU groups its sums."""
    file, env = tmp_path / "narrow", {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    subprocess.run([sys.executable, "-c", WIDTHS, str(file)], env=env, check=True)
    own: dict[str, Any] = {}
    exec(WIDTHS.partition("torch.save")[0], own)
    for narrow, usual in zip(torch.load(file), own["found"], strict=True):
        torch.testing.assert_close(usual, narrow, rtol=4 * 2**-23, atol=1e-30)
