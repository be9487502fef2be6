"""Advice: passes counted as the loop runs them, seconds by hand, and what follows from them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

import dllm
from dllm.advice import (
    CACHES,
    Bench,
    Curve,
    Figures,
    Network,
    Workload,
    advise,
    assumed,
    autoregressive,
    measure,
    passes_of,
    seconds_of,
    total_seconds,
)
from dllm.advice.seconds import work_of
from dllm.advice.workload import step_of, with_canvases
from dllm.models.config import ExpertsConfig, NetworkConfig
from dllm.models.cost import idle_parameters
from dllm.models.memory import NotEnoughMemoryError
from dllm.settings import Settings
from dllm.state.plan import PassShape

SMALL = NetworkConfig(
    vocab_size=50,
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
)
NETWORK = Network(SMALL, 4)
ASKED = Workload(prompt_length=24, answer_length=32, block_length=16)
FIGURES = Figures(
    "measured",
    1e3,
    1e4,
    products=Curve(((1, 100.0), (64, 6400.0))),
    pairs=Curve(((16, 50.0),)),
    layer_seconds=2.0,
    column_seconds=0.5,
    loop_seconds=7.0,
    logit_seconds=0.25,
)


@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_passes_are_those_of_the_loop(tiny: dllm.HostedModel, cache: str, tokens: int) -> None:
    settings = Settings(
        scheduler=f"fixed_quota:tokens_per_step={tokens}",
        cache=cache,
        max_new_tokens=32,
        min_new_tokens=32,
        block_length=16,
    )
    metrics = dllm.generate(tiny, [[5] * 24, [6] * 24], settings).metrics
    network = Network(tiny.network.config, 4)
    passes = passes_of(cache, replace(ASKED, batch=2, tokens_per_step=tokens))
    assert sum(one.count for one in passes) == metrics.num_forwards
    assert sum(one.count * network.cost.flops(one.shape) for one in passes) == metrics.flops
    fed = sum(one.count * one.shape.num_rows * one.shape.num_fed for one in passes)
    assert fed == metrics.tokens_fed


def test_a_block_causal_answer_feeds_a_block_and_what_became_full() -> None:
    shapes = [(one.shape, one.count) for one in passes_of("block_causal", ASKED)]
    fed = [(shape.num_fed, shape.num_keys, shape.num_logit_rows, n) for shape, n in shapes]
    assert fed == [
        *((40, 40, 16, 1), (16, 40, 16, 7), (16, 40, 8, 8)),
        *((32, 56, 16, 1), (16, 56, 16, 7), (16, 56, 8, 8)),
    ]


def test_an_autoregressive_answer_is_a_prompt_and_a_column_for_each_further_token() -> None:
    first, later = autoregressive(ASKED)
    assert (first.shape.num_fed, first.shape.num_logit_rows, first.count) == (24, 1, 1)
    assert (later.shape.num_fed, later.shape.num_keys, later.count) == (1, 24 + 16, 31)
    assert len(autoregressive(replace(ASKED, answer_length=1, block_length=1))) == 1


def test_the_work_of_a_pass_by_hand() -> None:
    """One row, three columns over ten keys, logits of all: nothing is narrowed."""
    work = work_of(NETWORK, PassShape("step", 1, 3, 10, 3, 3))
    layer = 4 * 8 * 8 + 3 * 8 * 16  # weights: attention, feed-forward
    assert work.layer_flops == 2 * 3 * 2 * layer
    assert work.pair_flops == 4 * 2 * 3 * 10 * 8
    assert work.head_flops == 2 * 3 * 8 * 50
    assert work.weight_bytes == 4 * 2 * layer
    assert work.head_bytes == 4 * 8 * 50
    assert work.key_bytes == 10 * 2 * 2 * 8 * 4
    assert work.flops == NETWORK.cost.flops(PassShape("step", 1, 3, 10, 3, 3))


def test_of_the_last_layer_only_columns_with_logits_ask() -> None:
    work = work_of(NETWORK, PassShape("step", 2, 4, 10, 4, 1))
    assert work.pair_flops == 2 * (4 + 1) * 10 * 4 * 8
    assert work.flops == NETWORK.cost.flops(PassShape("step", 2, 4, 10, 4, 1))


def test_seconds_of_limits_by_hand() -> None:
    shape = PassShape("step", 1, 3, 10, 3, 3)
    work, parts = work_of(NETWORK, shape), seconds_of(NETWORK, shape, assumed("cpu", 2.0, 4.0))
    assert parts.weights == pytest.approx((work.weight_bytes + work.head_bytes) / 2e9)
    assert parts.products == pytest.approx((work.layer_flops + work.head_flops) / 4e9)
    assert parts.pairs == pytest.approx(work.pair_flops / 4e9)
    assert parts.keys == pytest.approx(work.key_bytes / 2e9)
    assert (parts.layers, parts.loop) == (0, 0)


def test_measured_seconds_by_hand() -> None:
    """At 3 columns the curve's rate is 300: what products take beyond their weights is theirs."""
    shape = PassShape("step", 1, 3, 10, 3, 3)
    work, parts = work_of(NETWORK, shape), seconds_of(NETWORK, shape, FIGURES)
    both = (work.layer_flops + work.head_flops) / 300
    assert parts.weights == pytest.approx((work.weight_bytes + work.head_bytes) / 1e3)
    assert parts.weights + parts.products == pytest.approx(both)
    assert parts.pairs == pytest.approx(work.pair_flops / 50)
    assert parts.layers == pytest.approx(2 * (2.0 + 3 * 0.5))
    assert parts.loop == pytest.approx(7.0 + 3 * 50 * 0.25)
    assert parts.total == pytest.approx(sum(asdict(parts).values()))
    assert parts.bound == max(asdict(parts), key=asdict(parts).__getitem__)


def test_a_curve_is_a_power_between_points_and_level_outside() -> None:
    curve = Curve(((4, 10.0), (16, 40.0), (64, 40.0)))
    assert [curve.at(n) for n in (1, 4, 16, 32, 1000)] == pytest.approx([10, 10, 40, 40, 40])
    assert curve.at(8) == pytest.approx(20)


@pytest.mark.parametrize("figures", [assumed("cpu"), FIGURES], ids=["assumed", "measured"])
@pytest.mark.parametrize(
    "more",
    [{"prompt_length": 25}, {"answer_length": 64}, {"batch": 2}, {"prompt_length": 240}],
    ids=str,
)
@pytest.mark.parametrize("cache", list(CACHES))
def test_more_columns_are_never_cheaper(cache: str, more: dict[str, int], figures: Figures) -> None:
    larger = replace(ASKED, **more)
    less = total_seconds(NETWORK, passes_of(cache, ASKED), figures)
    assert total_seconds(NETWORK, passes_of(cache, larger), figures) > less


def test_a_small_step_waits_for_weights_and_a_large_batch_for_products() -> None:
    """A weight is four bytes and two FLOPs a column: 20 columns take 10 FLOPs for a byte."""
    figures, step = assumed("cpu", 1.0, 10.0), step_of("dual", ASKED)
    few, many = (seconds_of(NETWORK, replace(step, num_rows=n), figures) for n in (1, 64))
    assert few.products < few.weights < 2 * few.products
    assert many.products == pytest.approx(64 * few.products)
    assert many.weights == few.weights


def test_advice_follows_from_seconds() -> None:
    found = advise(NETWORK, ASKED, assumed("cpu"), ["none", "dual", "prefix", "dkv"])
    assert [one.cache for one in found.caches] == ["dual", "prefix", "none"]
    assert found.not_counted == ("dkv",)
    assert found.step == step_of("dual", ASKED)
    for one in found.verifiers:
        wide = seconds_of(NETWORK, with_canvases(found.step, one.num_canvases), found.figures)
        assert one.passes == pytest.approx(wide.total / found.parts.total)
        assert 1 < one.passes < one.num_canvases
    rows = [one.row_seconds for one in found.batches]
    assert rows == sorted(rows, reverse=True)
    for rated in found.caches:
        assert_is_break_even(rated.cache, rated.break_even, found.autoregressive_seconds)


def assert_is_break_even(cache: str, tokens: int | None, limit: float) -> None:
    """So many tokens a step are fast enough, and one fewer are not."""

    def seconds(each: int) -> float:
        passes = passes_of(cache, replace(ASKED, tokens_per_step=each))
        return total_seconds(NETWORK, passes, assumed("cpu"))

    if tokens is None:
        assert seconds(ASKED.block_length) > limit
    else:
        assert seconds(tokens) <= limit
        assert tokens == 1 or seconds(tokens - 1) > limit


def test_caches_that_are_not_counted_are_named() -> None:
    with pytest.raises(ValueError, match=r"caches=\['dkv'\].*none, prefix, dual, block_causal"):
        advise(NETWORK, ASKED, assumed("cpu"), ["dkv"])


def test_columns_of_a_mixture_share_experts() -> None:
    experts = ExpertsConfig(num_experts=8, num_active=2, intermediate_size=16)
    config = replace(SMALL, experts=experts)
    network, one = Network(config, 2), 3 * 8 * 16
    always = 2 * (4 * 8 * 8 + 8 * 8)  # attention and router
    read = [network.weight_bytes(n) // 2 for n in (1, 2, 4, 100)]
    assert read == [always + 2 * chosen * one for chosen in (2, 4, 8, 8)]
    assert read[-1] - read[0] == idle_parameters(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_length", 0),
        ("answer_length", 2**17 + 1),
        ("answer_length", 33),
        ("block_length", -1),
        ("batch", 2**16 + 1),
        ("tokens_per_step", 0),
    ],
)
def test_a_workload_names_what_is_wrong(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        replace(ASKED, **{name: value})


@pytest.mark.parametrize("limits", [(-1.0, 1.0), (1.0, float("nan")), (1.0, 1e30)])
def test_limits_are_numbers_of_a_machine(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"(bandwidth|rate)="):
        assumed("cpu", *limits)


def test_nothing_is_assumed_of_an_unknown_device() -> None:
    with pytest.raises(ValueError, match="'mps', only of cpu, cuda: give --bandwidth and --rate"):
        assumed("mps", bandwidth=1.0)
    assert assumed("mps", 1.0, 2.0).source == "given"


def test_a_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures are there and finite; how large they are is not tested."""
    monkeypatch.setattr("dllm.advice.timing.ROUNDS", 1)
    monkeypatch.setattr("dllm.advice.timing.SECONDS", 1e-4)
    monkeypatch.setattr("dllm.advice.timing.LARGE", 2**10)
    config = replace(SMALL, rotary_dim=None)
    bench = Bench(Network(config, 4), torch.float32, torch.device("cpu"))
    figures = measure(bench, ASKED)
    assert figures.source == "measured"
    assert figures.products is not None
    assert [columns for columns, _ in figures.products.points] == [1, 8, 16, 32, 56, 128]
    assert figures.pairs is not None
    assert [columns for columns, _ in figures.pairs.points] == [16, 56]
    assert min(figures.bytes_per_second, figures.flops_per_second, figures.loop_seconds) > 0
    assert min(figures.layer_seconds, figures.column_seconds, figures.logit_seconds) >= 0


def test_measuring_asks_for_its_memory_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(_: Any) -> int:
        return 2**20

    monkeypatch.setattr("dllm.advice.timing.available", free)
    bench = Bench(NETWORK, torch.float32, torch.device("cpu"))
    with pytest.raises(NotEnoughMemoryError, match="give --bandwidth and --rate"):
        measure(bench, ASKED)
