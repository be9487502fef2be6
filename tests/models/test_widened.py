"""Widened products are those of float32, rounded once."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dllm
from dllm.models.speed import widened
from dllm.models.speed.packed import prefers_onednn
from dllm.models.speed.widened import FEW_ROWS, WidenedLinear, check_widen, widen, widened_product
from tests.support.models import golden_model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", [4, 4 * 48, 4 * 48 * 7, 2**20])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("by_onednn", [False, True])
def test_a_product_worked_in_float32(
    dtype: torch.dtype, part: int, bias: bool, by_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch comes without oneDNN")
    monkeypatch.setattr(widened, "PART", part)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: by_onednn)
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(2, 9, 48).to(dtype)
    wide = F.linear(x.float(), linear.weight.float(), linear.bias.float() if bias else None)
    found = WidenedLinear.of(linear)(x)
    assert found.dtype == dtype
    assert found.shape == (2, 9, 80)
    # One rounding of sums in float32, which another order of additions moves by little.
    torch.testing.assert_close(found, wide.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 7), (130, 65), (257, 33)])
@pytest.mark.parametrize("num_rows", [1, 5, 33])
def test_any_sizes(num_rows: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(size).to(dtype), torch.randn(size[0]).to(dtype)
    x = torch.randn(num_rows, size[1]).to(dtype)
    exact = x.double() @ weight.double().t() + bias.double()
    found = widened_product(x, weight, bias)
    assert found.is_contiguous()
    torch.testing.assert_close(
        found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("count", [5, 16, 31, 64])
def test_rows_do_not_affect_one_another(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which rows stand beside a row, and how many, changes none of its numbers."""
    monkeypatch.setattr(widened, "PART", 4 * 96 * 50)
    torch.manual_seed(0)
    weight, x = torch.randn(160, 96).bfloat16(), torch.randn(64, 96).bfloat16()
    whole = widened_product(x, weight, None)
    assert torch.equal(widened_product(x[:count], weight, None), whole[:count])
    order = torch.randperm(64)
    assert torch.equal(widened_product(x[order], weight, None), whole[order])


def test_the_library_is_no_matter_of_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a trial picks it, two processes of one machine may round in two ways."""

    def tried() -> float:
        raise AssertionError

    monkeypatch.setattr("dllm.models.speed.packed.perf_counter", tried)
    prefers_onednn.cache_clear()
    weight = torch.randn(16, 8).bfloat16()
    assert widened_product(torch.randn(9, 8).bfloat16(), weight, None).shape == (9, 16)


def test_few_rows_take_the_usual_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "widened_product", lambda x, weight, bias: x)
    linear = nn.Linear(16, 16).bfloat16().requires_grad_(False)
    layer = WidenedLinear.of(linear)
    few, many = torch.randn(FEW_ROWS, 16).bfloat16(), torch.randn(FEW_ROWS + 1, 16).bfloat16()
    assert torch.equal(layer(few), linear(few))
    assert layer(many) is many


def test_what_learns_takes_the_usual_product() -> None:
    layer = WidenedLinear.of(nn.Linear(16, 16).bfloat16().requires_grad_(False))
    x = torch.randn(8, 16).bfloat16().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_weights_are_not_copied_and_stay_narrow() -> None:
    model = golden_model("llada_gqa", "bfloat16")
    before = {name: weight.data_ptr() for name, weight in model.network.named_parameters()}
    widen(model.network)
    widen(model.network)
    after = {name: weight.data_ptr() for name, weight in model.network.named_parameters()}
    assert after == before
    kinds = {type(part) for part in model.network.modules() if isinstance(part, nn.Linear)}
    assert kinds == {WidenedLinear}


def test_threads_do_not_share_the_memory() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(64, 32).bfloat16() for _ in range(4)]
    x = torch.randn(16, 32).bfloat16()
    alone = [widened_product(x, weight, None) for weight in weights]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            if not torch.equal(widened_product(x, weights[number], None), alone[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inside_inference_mode_and_outside() -> None:
    """The memory that products share is not one that inference mode owns."""
    weight, x = torch.randn(8, 8).bfloat16(), torch.randn(8, 8).bfloat16()
    found: list[torch.Tensor] = []

    def work() -> None:
        with torch.inference_mode():
            widened_product(x, weight, None)
        found.append(widened_product(x, weight, None))

    thread = threading.Thread(target=work)  # whose memory is new
    thread.start()
    thread.join()
    assert len(found) == 1


def test_answers_are_near_those_of_float32() -> None:
    model = dllm.load("tiny", dtype="bfloat16", speed="widened")
    plain = dllm.load("tiny", dtype="bfloat16", speed=None)
    wide = dllm.load("tiny", speed=None)
    tokens = torch.randint(0, 100, (2, 24), generator=torch.Generator().manual_seed(0))
    found, usual, exact = (m.network(tokens).float() for m in (model, plain, wide))
    assert (found - exact).abs().mean() < 1.1 * (usual - exact).abs().mean()
    out = dllm.generate(model, [[5] * 9, [7] * 4], max_new_tokens=16, cache="dual")
    assert out.metrics.num_forwards > 0


def test_what_cannot_be_widened() -> None:
    with pytest.raises(ValueError, match=r"torch.float32 are not widened: only bfloat16 and"):
        dllm.load("tiny", dtype="float32", speed="widened")
    with pytest.raises(ValueError, match="weights on cuda are not widened: that is for a CPU"):
        check_widen(nn.Linear(2, 2, dtype=torch.bfloat16), torch.device("cuda"))
    for other in ("packed", "int8", "compiled"):
        with pytest.raises(ValueError, match=r"'widened' (keep|goes)|and 'widened' keep"):
            dllm.load("tiny", dtype="bfloat16", speed=["widened", other])
    model = dllm.load("tiny", dtype="bfloat16", speed="widened")
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match="laid out or widened for a CPU: load it with speed='int8"):
        dllm.speed_up(model, "int8")
