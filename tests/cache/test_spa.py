"""SPA-Cache: shares and directions by hand, and whole runs beside the published loop."""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dllm
from dllm.cache.spa import SpaCache
from dllm.models.layer_policies import FeatureReuse
from dllm.models.layers import Attention
from dllm.models.singular_reuse import ShareCurve, directions
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.feature_rows import FeatureRow, decoded
from tests.support.marks import crossed
from tests.support.models import Watched, golden_model, random_prompts

NAMES = ("llada_gqa", "dream_gqa")
SLOTS: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "at_eos": "ignore"}


def published_share(cache: SpaCache, layer: int, depth: int) -> float:
    """Returns a layer's share as the authors write it: widths, then the curve."""
    depth_at, peak = layer / depth, cache.most
    ends = cache.first * peak, cache.last * peak
    left = sqrt(-(cache.place**2) / (2 * log(ends[0] / peak)))
    right = sqrt(-((1 - cache.place) ** 2) / (2 * log(ends[1] / peak)))
    sigma = left if depth_at < cache.place else right
    share = float(peak * torch.tensor(-((depth_at - cache.place) ** 2) / (2 * sigma**2)).exp())
    return max(share, cache.least) if depth_at < cache.place else share


def curve_of(cache: SpaCache) -> ShareCurve:
    return ShareCurve(cache.most, cache.place, cache.first, cache.last, cache.least)


def test_shares_by_hand() -> None:
    curve = ShareCurve(0.4, 0.5, 0.25, 0.5, 0.25)
    # 0.4 * 0.25 at the top, but no less than 0.25 there; 0.25 ** (1/4) = 0.7071 half way.
    assert curve.share(0, 8) == 0.25
    assert curve.share(2, 8) == pytest.approx(0.4 * 0.25**0.25)
    assert curve.share(4, 8) == 0.4
    assert curve.share(6, 8) == pytest.approx(0.4 * 0.5**0.25)
    assert curve.share(8, 8) == pytest.approx(0.2)  # nothing is least on this side
    create = dllm.cache.registry.create
    for name, depth in (("llada_gsm8k", 32), ("llada_1_5", 32), ("dream_gsm8k", 28)):
        cache = create(f"spa@{name}")
        assert isinstance(cache, SpaCache)
        shares = [curve_of(cache).share(layer, depth) for layer in range(depth)]
        expected = [published_share(cache, layer, depth) for layer in range(depth)]
        assert shares == pytest.approx(expected, abs=1e-6)
        assert max(shares) == pytest.approx(0.25, rel=0.01)


def projections(attention: Any) -> Tensor:
    """Returns the value weights of a layer, (values, d)."""
    if attention.config.fused_qkv:
        weight: Tensor = attention.qkv.weight[-attention.kv_width :]
        return weight
    alone: Tensor = attention.v.weight
    return alone


@pytest.mark.parametrize("fused", [False, True])
def test_directions_are_those_of_the_values(fused: bool) -> None:
    config = replace(golden_model("dream_gqa").network.config, fused_qkv=fused)
    torch.manual_seed(0)
    attention = Attention(config).double()
    store = KVStore(golden_model("dream_gqa").new_store(1, 4).shape, torch.float64, ())
    x = torch.randn(5, config.hidden_size, dtype=torch.float64)
    left, sizes, _ = torch.linalg.svd(projections(attention).T.detach(), full_matrices=False)
    for rank in (1, 3, len(sizes), 999):
        found = directions(attention, rank, x, store)
        assert directions(attention, rank, x, store) is found
        expected = (left * sizes)[:, :rank]
        # Singular vectors have either sign: what they see of two states is the same.
        torch.testing.assert_close(x @ found @ found.T @ x.T, x @ expected @ expected.T @ x.T)


class PublishedRow(FeatureRow):
    """The authors' passes over one row, with their counter from 0 on."""

    def __init__(self, network: Any, start: int, cache: SpaCache) -> None:
        super().__init__(network)
        self.start, self.cache, self.step = start, cache, 0
        self.seen: dict[int, Tensor] = {}

    def __call__(self, row: Tensor, last: int) -> Tensor:
        cache, start, total, x = self.cache, self.start, len(row), self.network.embedding(row)
        every, answer = list(range(total)), list(range(start, total))
        depth = len(self.network.blocks)
        all_now = self.step % cache.prompt_every == 0
        for layer, block in enumerate(self.network.blocks):
            if layer == 0:
                x = self.run(layer, x, every)
                continue
            left, sizes, _ = torch.linalg.svd(projections(block.attention).T, full_matrices=False)
            seen = self.normed(layer, x)[start:] @ (left * sizes)[:, : cache.rank]
            before, self.seen[layer] = self.seen.get(layer, seen), seen
            if all_now:
                x = self.run(layer, x, every)
            elif self.step % cache.answer_every == 0:
                x = self.run(layer, x, answer)
            else:
                alike = torch.cosine_similarity(seen, before, dim=-1)
                count = int(len(answer) * published_share(cache, layer, depth))
                order = sorted(range(len(answer)), key=lambda at: float(alike[at]))
                x = self.run(layer, x, [start + at for at in order[:count]], answer, answer)
        self.step += 1
        return self.logits(x)


SETTINGS = [
    SpaCache(rank=4),
    SpaCache(50, 50, most=0.3, rank=2, place=0.3),
    SpaCache(5, 4, most=0.5, first=0.5, last=0.9, rank=3),
    SpaCache(25, 2, most=0.4, place=0.5, rank=128, least=0.3),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("cache", "name", "block", "rows", "seed"),
    crossed(SETTINGS, NAMES, (6, 8, 24), (1, 3, 5), (1, 2, 3)),
)
def test_runs_are_the_published_loops(
    cache: SpaCache, name: str, block: int, rows: int, seed: int
) -> None:
    model, prompts = golden_model(name), random_prompts(rows, seed=seed)
    options = {**SLOTS, "block_length": block, "scheduler": "threshold:0.5", "cache": cache}
    out = dllm.generate(model, prompts, **options)
    for row, prompt in enumerate(prompts):
        forward = PublishedRow(model.network, len(prompt), cache)
        tokens, when, passes = decoded(model, prompt, (24, block), 0.5, forward)
        assert list(out.sequences[row]) == tokens
        assert out.trace.commit_step[row, len(prompt) :][:24].tolist() == when
        assert out.metrics.rows[row].forwards == passes


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_computing_all_at_each_pass_is_exact(name: str) -> None:
    model, prompts = golden_model(name), random_prompts(4)
    options = {**SLOTS, "scheduler": "fixed_quota"}
    exact = dllm.generate(model, prompts, **options).sequences
    assert dllm.generate(model, prompts, cache="spa:1", **options).sequences == exact
    stale = dllm.generate(model, prompts, cache="spa:99,answer_every=99,rank=4", **options)
    assert stale.sequences != exact


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_values_of_the_answer_are_all_new(name: str) -> None:
    model, num_partial = golden_model(name), 0
    lengths = [len(prompt) for prompt in random_prompts(3)]

    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        nonlocal num_partial
        assert isinstance(plan.policy, FeatureReuse)
        if plan.policy.num_fresh:
            return
        num_partial += 1
        for old, new in zip(before, (*store.keys, *store.values), strict=True):
            if old is before[0] or old is before[len(store.keys)]:
                continue  # the first layer computes everything
            changed = (old != new).flatten(1).any(1)
            for row, start in enumerate(lengths):
                first = row * store.shape.num_columns
                assert changed[first + start : first + start + 24].all()
                assert not changed[first : first + start].any()

    watched: Any = Watched(model, check)
    options = {**SLOTS, "cache": "spa:50,answer_every=7,rank=4", "scheduler": "fixed_quota"}
    dllm.generate(watched, random_prompts(3), **options)
    assert num_partial == 20


@pytest.mark.parametrize("name", NAMES)
def test_flops_are_those_of_what_is_computed(name: str) -> None:
    model, counter = golden_model(name, "float32"), FlopCounterMode(display=False)
    options = {**SLOTS, "cache": "spa:6,answer_every=4,rank=5", "scheduler": "fixed_quota"}
    dllm.generate(model, random_prompts(3), **options)  # finds the directions
    with counter, sdpa_kernel(SDPBackend.MATH):
        metrics = dllm.generate(model, random_prompts(3), **options).metrics
    assert metrics.flops == counter.get_total_flops()
    exact = dllm.generate(model, random_prompts(3), **{**options, "cache": "none"}).metrics
    assert 0 < (metrics.flops or 0) < 0.9 * (exact.flops or 0)


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ("spa:0", "prompt_every=0 must be at least 1"),
        ("spa:most=1.5", "most=1.5 must be a share between 0 and 1"),
        ("spa:place=1", r"place=1 must be in \(0, 1\)"),
        ("spa:first=0", r"first=0 must be in \(0, 1\)"),
        ("spa:rank=0", "rank=0 must be at least 1"),
    ],
)
def test_wrong_options_are_explained(cache: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dllm.cache.registry.create(cache)
