"""Compiled layers: the same tokens, few variants, and passes as they are where it fails."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import dllm
from dllm.models.layers import Block, SwiGLU
from dllm.models.speed.compiled import Compiled
from dllm.state.plan import StepPlan
from tests.support.speed import decode, decodings, model_of, usual

COMPILE: Any = torch.compile


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Any:
    yield
    torch.compiler.reset()


class Traced:
    """Stands in for the compiler's back end: runs what was traced, operation by operation."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        del inputs
        self.count += 1
        return graph.forward


def compiled(
    name: str, monkeypatch: pytest.MonkeyPatch, most: int = 8
) -> tuple[dllm.HostedModel, Compiled, Traced]:
    """Returns a model whose layers are traced and guarded; machine code takes seconds a variant."""
    traced = Traced()
    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=traced))
    runner = Compiled(model_of(name).network, most)
    return replace(model_of(name), runner=runner), runner, traced


def decoded_alike() -> dict[tuple[str, str], list[int]]:
    """Returns the places of the decodings of each model with each cache: one tracing is for all."""
    found: dict[tuple[str, str], list[int]] = {}
    for place, (name, settings) in enumerate(decodings()):
        found.setdefault((name, settings["cache"]), []).append(place)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", decoded_alike(), ids="-".join)
def test_tokens_of_traced_layers(case: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, runner, traced = compiled(case[0], monkeypatch)
    for place in decoded_alike()[case]:
        _, settings = decodings()[place]
        assert decode(model, settings) == usual(place), settings
        assert runner.failed is None, settings
    # Twice, where the last layer runs for fewer rows; each once more where sizes that were equal at
    # first are not later. Each of the two functions may be traced eight times.
    assert 0 < runner.num_variants <= traced.count <= min(2 * runner.num_variants + 2, 10)


@pytest.mark.slow
def test_sizes_make_no_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    model, runner, traced = compiled("llada_gqa", monkeypatch)
    for rows, width, num_keys in ((2, 5, 20), (3, 5, 20), (2, 9, 20), (4, 12, 31), (2, 20, 20)):
        store = model.new_store(rows, num_keys)
        plan = part(rows, width, num_keys)
        plan = replace(plan, stored=plan.positions)
        tokens = torch.full((rows, width), 5)
        expected = model_of("llada_gqa").forward(tokens, plan, model.new_store(rows, num_keys))
        torch.testing.assert_close(model.forward(tokens, plan, store), expected)
    # A second where the compiler took sizes for one that were equal in the first pass.
    assert runner.num_variants == 1 <= traced.count <= 2


@pytest.mark.slow
def test_what_a_pass_is_made_of_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model, runner, _ = compiled("llada_gqa", monkeypatch)
    hidden = torch.arange(6)[None, None] < 4
    plans = [part(2, 6, 6), replace(part(2, 6, 6), attention_mask=hidden), part(1, 6, 6)]
    for number, plan in enumerate(plans):
        for _ in range(2):
            tokens = torch.full(plan.positions.shape, 5)
            expected = model_of("llada_gqa").forward(tokens, plan, None)
            torch.testing.assert_close(model.forward(tokens, plan, None), expected)
        assert runner.num_variants == number + 1


@pytest.mark.slow
def test_no_more_variants_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, runner, traced = compiled("llada_gqa", monkeypatch, most=1)
    for plan in (part(2, 6, 6), part(1, 6, 6), part(2, 7, 7)):
        tokens = torch.full(plan.positions.shape, 5)
        expected = model_of("llada_gqa").forward(tokens, plan, None)
        torch.testing.assert_close(model.forward(tokens, plan, None), expected)
    assert runner.num_variants == traced.count == 1


@pytest.mark.slow
def test_networks_do_not_share_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        for name in ("llada_gqa", "dream_gqa", "sdar"):
            model, runner, traced = compiled(name, monkeypatch)
            model.forward(torch.full((2, 6), 5), part(2, 6, 6), None)
            assert runner.num_variants == traced.count == 1


def test_a_failed_compilation_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, runner, _ = compiled("llada_gqa", monkeypatch)

    def broken(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler\nand a long story")

    monkeypatch.setattr(runner, "_layers", dict.fromkeys(runner._layers, broken))
    settings = {"cache": "dual", "scheduler": "fixed_quota"}
    with caplog.at_level(logging.WARNING, "dllm"):
        for _ in range(2):
            assert decode(model, settings) == decode(model_of("llada_gqa"), settings)
    (record,) = caplog.records
    assert record.getMessage().endswith("from now on: RuntimeError: No working C++ compiler")


def test_memory_that_runs_out_is_no_failed_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, runner, _ = compiled("llada_gqa", monkeypatch)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "_layers", dict.fromkeys(runner._layers, full))
    with pytest.raises(torch.OutOfMemoryError):
        model.forward(torch.full((2, 6), 5), part(2, 6, 6), None)
    assert runner.failed is None


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["d2cache:4", "dllm_cache", "sparse:0.5"])
def test_caches_that_do_more_than_keys_and_values(
    cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"cache": cache, "scheduler": "fixed_quota"}
    model, runner, _ = compiled("llada_gqa", monkeypatch)
    assert decode(model, settings) == decode(model_of("llada_gqa"), settings)
    assert runner.failed is None


@pytest.mark.slow
def test_layers_that_differ_do_not_share_a_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = Traced()
    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=traced))
    network = deepcopy(model_of("llada_gqa").network)
    own = replace(model_of("llada_gqa"), network=network)
    last = network.blocks[-1]
    assert isinstance(last, Block)
    last.feed_forward = SwiGLU(replace(network.config, intermediate_size=24)).eval()
    last.feed_forward.requires_grad_(False)
    tokens, plan = torch.full((2, 6), 5), part(2, 6, 6)
    expected = own.forward(tokens, plan, None)
    quick = replace(own, runner=Compiled(network))
    torch.testing.assert_close(quick.forward(tokens, plan, None), expected)
    assert traced.count == 2


def test_most_must_be_positive() -> None:
    with pytest.raises(ValueError, match="most=0 compiled variants must be at least 1"):
        Compiled(model_of("llada_mha").network, most=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cache", "ways"),
    [
        ("none", ("fused", "packed", "compiled")),
        ("dual", ("compiled",)),
        pytest.param("none", ("compiled",), marks=pytest.mark.whole),
        pytest.param("dual", ("fused", "packed", "compiled"), marks=pytest.mark.whole),
    ],
    ids=str,
)
def test_tokens_of_machine_code(cache: str, ways: tuple[Any, ...]) -> None:
    own = replace(model_of("llada_gqa"), network=deepcopy(model_of("llada_gqa").network))
    model = dllm.speed_up(own, *ways)
    settings = {"cache": cache, "scheduler": "threshold:0.4"}
    assert decode(model, settings) == decode(model_of("llada_gqa"), settings)
    assert isinstance(model.runner, Compiled)
    assert model.runner.failed is None
    assert model.runner.num_variants > 0


def part(rows: int, width: int, num_keys: int) -> StepPlan:
    columns = torch.arange(num_keys - width, num_keys).expand(rows, width)
    head = torch.arange(width).expand(rows, width)
    return StepPlan("step", columns, head, num_keys)
