"""Caches that go by what the model attends to, and refreshes within a block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, floor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dllm
from dllm.cache.d2cache import D2Cache
from dllm.cache.dual import DualCache
from dllm.cache.passes import every_column
from dllm.cache.sparse import SparseCache
from dllm.generate import Stream
from dllm.models.layer_policies import (
    FeatureReuse,
    KeptWeights,
    KeyRetention,
    RetainedKeys,
    attention_rollout,
)
from dllm.models.layers import Attention, explicit_attention
from dllm.schedulers.certainty_density import decoded_share
from dllm.settings import Settings
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.marks import crossed, some
from tests.support.models import MODELS, Watched, golden_model, random_prompts

NAMES = ("llada_gqa", "dream_gqa")
SLOTS: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "scheduler": "fixed_quota"}
FORMS: list[dict[str, Any]] = [
    {},
    {"scheduler": "multi_block:0.4,blocks=2"},
    {"scheduler": "lopa:0.6,branches=3"},
    {"scheduler": "wino:0.4,threshold_back=0.5"},
    {"scheduler": "token_editing:0.4,editing_threshold=0.3,post_steps=3"},
    {"scheduler": "klass:0.4,kl_threshold=0.5"},
    {"scheduler": "threshold:0.5", "guidance_scale": 0.5},
]


def run(name: str, cache: Any, **given: Any) -> dllm.GenerationOutput:
    model, prompts = golden_model(name), random_prompts(4)
    return dllm.generate(model, prompts, cache=cache, **{**SLOTS, **given})


def watch(name: str, cache: Any, check: Any, **given: Any) -> None:
    watched: Any = Watched(golden_model(name), check)
    dllm.generate(watched, random_prompts(3), cache=cache, **{**SLOTS, **given})


# Refreshes within a block


@pytest.mark.few(1)
@pytest.mark.parametrize(("name", "cache"), crossed(NAMES, ("prefix", "dual")))
def test_a_refresh_at_each_forward_is_exact(name: str, cache: str) -> None:
    exact = run(name, "none").sequences
    assert run(name, f"{cache}:refresh_every=1").sequences == exact
    seldom = run(name, f"{cache}:refresh_every=3").sequences
    assert seldom not in (exact, run(name, cache).sequences), "the model does not feel stale keys"


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_refresh_leaves_out_what_was_cut_off(cache: str) -> None:
    given = {"scheduler": "end_of_text:fixed_quota", "eos_token_id": [6, 9, 13, 29, 72, 113]}
    exact = run("llada_gqa", "none", **given)
    assert len({len(sequence) for sequence in exact.sequences}) > 1
    assert run("llada_gqa", f"{cache}:refresh_every=1", **given).sequences == exact.sequences


@pytest.mark.few(3)
@pytest.mark.parametrize("every", [1, 2, 3, 7, 8, 9])
def test_refreshes_are_counted_within_the_block(every: int) -> None:
    out = run("llada_gqa", {"name": "dual", "refresh_every": every}, at_eos="ignore")
    assert out.metrics.forwards["refresh"] == 3 * -(-8 // every)
    longest = max(len(sequence) for sequence in out.sequences)
    block = [longest if number % every == 0 else 8 for number in range(8)]
    assert list(out.metrics.fed) == 3 * block


def test_only_the_first_refresh_of_a_block_forces_a_token() -> None:
    cache = {"name": "dual", "first_token": "force", "refresh_every": 1}
    out = run("dream_gqa", cache, scheduler="threshold:0", at_eos="ignore")
    assert out.metrics.num_forwards == 6
    assert all(row.forwards == 6 for row in out.metrics.rows)


# Sparse-dLLM


@dataclass(frozen=True)
class Delayed(DualCache):
    """A dual cache whose blocks begin with several refreshes."""

    delay: int = 1

    def plan(self, canvas: Any, status: Any, spec: Any) -> StepPlan:
        if not status.entered and status.block_forwards <= self.delay:
            return every_column(canvas, spec, store=True, width=status.length)
        return super().plan(canvas, status, spec)


@pytest.mark.few(1)
@pytest.mark.parametrize(("name", "delay"), crossed(NAMES, (0, 1, 2)))
def test_all_keys_kept_is_a_dual_cache(name: str, delay: int) -> None:
    dual = run(name, Delayed(delay=delay))
    everything = run(name, SparseCache(keep=1, delay=delay))
    assert everything.sequences == dual.sequences
    assert everything.metrics.fed == dual.metrics.fed
    assert run(name, SparseCache(keep=0.5, delay=delay)).sequences != dual.sequences


@pytest.mark.few(2)
@pytest.mark.parametrize("given", some(FORMS, every=2))
def test_all_keys_kept_is_a_dual_cache_for_every_kind_of_scheduler(given: Any) -> None:
    dual = run("llada_gqa", Delayed(delay=1), seed=0, **given)
    assert run("llada_gqa", SparseCache(keep=1), seed=0, **given).sequences == dual.sequences


def test_forcing_the_first_token_goes_with_both() -> None:
    dual = run("dream_gqa", Delayed(delay=1, first_token="force"))
    sparse = run("dream_gqa", SparseCache(keep=1, first_token="force"))
    assert sparse.sequences == dual.sequences != run("dream_gqa", "sparse:1").sequences


def test_retention_by_hand() -> None:
    """Columns 2 and 3 are the block; 1 and 4 become neighbours, and 6 is padding."""
    keys = torch.tensor([1.0, 5.0, 9.0, 9.0, 0.0, 2.0, 99.0]).view(1, 7, 1, 1)
    queries = torch.tensor([0.0, 0.0, 1.0, 3.0, 0.0, 0.0, 0.0]).view(1, 7, 1, 1)
    block = torch.tensor([[False, False, True, True, False, False, False]])
    ranked = torch.tensor([[True, True, False, False, True, True, False]])

    def kept(count: int, kernel: int) -> list[int]:
        order = KeyRetention(block, ranked, torch.tensor([count]), kernel)
        chosen = order.choose(queries, keys)[0]
        assert chosen[[2, 3, 6]].all()
        return [column for column in (0, 1, 4, 5) if chosen[column]]

    assert [kept(n, 1) for n in range(5)] == [[], [1], [1, 5], [0, 1, 5], [0, 1, 4, 5]]
    assert [kept(n, 3) for n in range(5)] == [[], [0], [0, 1], [0, 1, 4], [0, 1, 4, 5]]


class Queries:
    """Notes the rotated queries of each layer in the last pass."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.of_layer: dict[int, Tensor] = {}
        for layer, block in enumerate(model.network.blocks):
            attention = block.get_submodule("attention")
            attention.register_forward_pre_hook(self.note(layer))

    def note(self, layer: int) -> Any:
        def hook(attention: Any, args: Any) -> None:
            self.of_layer[layer] = attention.rotate(attention.project(args[0])[0], args[1].rotation)

        return hook


def brute_force(plan: StepPlan, row: int, queries: Tensor, keys: Tensor, share: float) -> set[int]:
    """Returns the columns outside the block that a layer keeps, one number after the other."""
    assert isinstance(plan.policy, KeyRetention)
    ranked = plan.policy.candidates[row].nonzero().flatten().tolist()
    block = plan.positions[row][plan.policy.queries[row]].tolist()
    num_heads, group = queries.shape[2], queries.shape[2] // keys.shape[1]
    scores = []
    for column in ranked:
        products = [
            float(queries[row, block, head].mean(0) @ keys[column, head // group])
            for head in range(num_heads)
        ]
        scores.append(sum(products) / num_heads)
    pooled = [max(scores[max(0, i - 1) : i + 2]) for i in range(len(scores))]
    best = sorted(range(len(ranked)), key=lambda i: (-pooled[i], i))
    return {ranked[i] for i in best[: floor(share * len(ranked))]}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_each_layer_keeps_what_the_block_asks_for(name: str) -> None:
    model = dllm.load(f"tests/golden/models/{name}", dtype="float64")
    queries, lead, sets = Queries(model), model.spec.logit_shift, []

    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        if not isinstance(plan.policy, KeyRetention):
            return
        width = store.shape.num_columns
        for row, slots in enumerate([24 + len(prompt) for prompt in random_prompts(3)]):
            block = plan.positions[row][plan.policy.queries[row]].tolist()
            assert block == list(range(block[0], block[0] + 8))
            near = set(range(block[0] - lead, block[0] + 8))
            ranked = set(range(slots)) - near
            assert set(plan.policy.candidates[row].nonzero().flatten().tolist()) == ranked
            found = []
            for layer, keys in enumerate(store.keys):
                row_keys = keys[row * width : (row + 1) * width]
                expected = brute_force(plan, row, queries.of_layer[layer], row_keys, 0.4)
                kept = store.kept[layer]
                assert kept is not None
                assert set(kept[row].nonzero().flatten().tolist()) & ranked == expected
                assert len(expected) == floor(0.4 * len(ranked))
                found.append(expected)
            sets.append(found)

    watched: Any = Watched(model, check)
    dllm.generate(watched, random_prompts(3), cache="sparse:0.4", at_eos="ignore", **SLOTS)
    assert len(sets) == 9
    assert all(first != second for first, second, *_ in sets), "all layers keep the same"


def shaken(model: Any, passed: Any, layer: int, column: int) -> bool:
    """Whether a pass feels the key of a column of row 0 in one layer."""
    tokens, plan, store, before, logits = passed
    copy = model.new_store(store.shape.num_rows, store.shape.num_columns)
    for target, source in zip((*copy.keys, *copy.values), before, strict=True):
        target.copy_(source)
    copy.kept = store.kept
    copy.keys[layer][column] += 30.0
    copy.values[layer][column] += 30.0
    return not torch.equal(model.forward(tokens, plan, copy)[0], logits[0])


@pytest.mark.parametrize("name", NAMES)
def test_only_kept_keys_are_felt_and_they_stay_as_they_are(name: str) -> None:
    model, num_steps = golden_model(name), 0
    frozen: dict[int, Tensor] = {}

    def check(*passed: Any) -> None:
        nonlocal num_steps
        _, plan, store, *_ = passed
        fed = set(plan.positions[0].tolist())
        if plan.kind == "refresh":
            frozen.clear()
            return
        assert isinstance(plan.policy, RetainedKeys)
        num_steps += 1
        for layer, keys in enumerate(store.keys):
            kept = [c for c in store.kept[layer][0].nonzero().flatten().tolist() if c < 36]
            outside = [c for c in kept if c not in fed]
            state = torch.cat([keys[outside], store.values[layer][outside]])
            assert torch.equal(frozen.setdefault(layer, state), state)
            if num_steps == 2:
                hidden = next(c for c in range(36) if c not in kept)
                assert not shaken(model, passed, layer, hidden)
                assert shaken(model, passed, layer, outside[0])

    prompts = [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [7, 8, 9, 10]]
    watched: Any = Watched(model, check)
    dllm.generate(watched, prompts, cache="sparse:0.5", **SLOTS)
    assert num_steps == 3 * 6


def test_variants_of_a_row_see_what_the_row_has_kept() -> None:
    num_compared = 0

    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        nonlocal num_compared
        if isinstance(plan.policy, RetainedKeys) and len(tokens) == store.shape.num_rows:
            for kept in store.kept:
                assert kept is not None
                of_row = kept.unflatten(0, (3, -1))
                assert (of_row == of_row[:, :1]).all()
                assert not (of_row[0, 0] == of_row[1, 0]).all()
            num_compared += 1

    watch("llada_gqa", "sparse:0.5", check, scheduler="lopa:0.6,branches=3")
    assert num_compared > 3


def test_guidance_ranks_for_each_half_of_each_row() -> None:
    """Both halves of row b choose among the columns of row b, whose block begins elsewhere."""
    found = []

    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        if isinstance(plan.policy, KeyRetention):
            first, second = plan.policy.candidates.chunk(2)
            assert torch.equal(first, second)
            assert torch.equal(first, plan.policy.candidates[: len(tokens) // 2])
            block = plan.positions.gather(1, plan.logit_rows[:, :8])
            assert (plan.positions[plan.policy.queries] == block.flatten()).all()
            found.append(True)

    watch("llada_gqa", "sparse", check, guidance_scale=0.5)
    assert found


def test_rows_of_one_length_see_what_they_kept() -> None:
    """Then no plan needs a mask, and what was kept is all there is of one."""
    model, prompts = golden_model("llada_gqa"), random_prompts(2, low=12, high=13)
    outputs = [
        dllm.generate(model, prompts, cache=cache, **SLOTS).sequences
        for cache in ("sparse:0.2", "sparse:1")
    ]
    assert outputs[0] != outputs[1]
    alone = [dllm.generate(model, [p], cache="sparse:0.2", **SLOTS).sequences[0] for p in prompts]
    assert list(outputs[0]) == alone


def test_a_block_costs_two_full_passes() -> None:
    out = run("llada_gqa", "sparse", at_eos="ignore")
    longest = max(len(sequence) for sequence in out.sequences)
    assert list(out.metrics.fed) == 3 * ([longest] * 2 + [8] * 6)


# d2Cache


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "given"),
    [
        pytest.param(name, given, marks=[pytest.mark.slow] * (place % 2))
        for name, forms in (("llada_gqa", FORMS), ("dream_gqa", FORMS[:3]))
        for place, given in enumerate(forms)
    ],
)
def test_everything_chosen_is_exact(name: str, given: Any) -> None:
    exact = run(name, "none", seed=0, **given)
    cached = run(name, "d2cache:3,rollout=1", seed=0, **given)
    assert cached.sequences == exact.sequences
    assert run(name, "d2cache:3", seed=0, **given).sequences != exact.sequences


def steps(name: str, cache: D2Cache, **given: Any) -> Any:
    """Yields the stream and the event of each step."""
    options = Settings(cache=cache, **{**SLOTS, "seed": 0, **given})
    running = Stream(golden_model(name), random_prompts(4), options)
    for event in running:
        yield running.canvas, event


def choice(cache: D2Cache, canvas: Canvas, row: int, shift: int) -> tuple[set[int], set[int]]:
    """Returns the masks that a row is fed for, and all columns that it feeds, by plain loops."""
    length, start = int(canvas.length[row]), int(canvas.prompt_length[row])
    block = range(int(canvas.block_start[row]), int(canvas.block_end[row]))
    assert canvas.cache_state is not None
    masks = [c for c in range(length) if canvas.masked[row, c]]
    decoded = [c for c in range(start, length) if c not in masks]
    end = block.stop
    while len([c for c in masks if c < end]) < cache.masks and end < length:
        end += canvas.layout.block_length
    score = {}
    for column in masks:
        share = density(column - start, [c - start for c in decoded], length - start, cache.sigma)
        score[column] = float(canvas.cache_state.confidence[row, column]) * share
    order = sorted((c not in block, -score[c], c) for c in masks if c < end)
    likely = {column for _, _, column in order[: cache.masks]}
    fed = {c - shift for c in likely}
    fed |= {c for c in range(length) if canvas.tokens[row, c] != canvas.cache_state.tokens[row, c]}
    if canvas.layout.whole_block:
        fed |= {c - shift for c in block if c - shift < length}
    got = {c: float(canvas.cache_state.importance[row, c]) for c in range(length) if c not in fed}
    total = sum(got.values())
    reached = 0.0
    for number, (column, value) in enumerate(sorted(got.items(), key=lambda x: (-x[1], x[0]))):
        reached += value / total
        if number and reached > cache.rollout:
            break
        fed.add(column)
    places = sorted(fed)
    for left, right in pairwise(places):
        if right - left <= cache.gap:
            fed |= set(range(left, right))
    return likely, fed


def density(place: int, decoded: list[int], num_slots: int, sigma: float) -> float:
    """Returns the Gaussian share of what is there around a slot, far beyond both ends."""
    ended = num_slots - 1 in decoded
    part = whole = 0.0
    for other in range(-200, num_slots + 200):
        weight = exp(-((other - place) ** 2) / (2 * sigma**2))
        there = other < 0 or other in decoded or (ended and other >= num_slots)
        part, whole = part + weight * there, whole + weight
    return part / whole


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_density_is_a_gaussian_sum(data: st.DataObject) -> None:
    num_slots = data.draw(st.integers(1, 20))
    width = num_slots + data.draw(st.integers(0, 5))
    there = [data.draw(st.booleans()) for _ in range(num_slots)]
    sigma = data.draw(st.sampled_from([0.5, 2.0, 10.0]))
    decoded = torch.tensor([there + [False] * (width - num_slots)])
    slots = torch.arange(width)[None]
    share = decoded_share(decoded, slots, torch.tensor([num_slots]), sigma, torch.float64)
    for place in range(num_slots):
        ones = [slot for slot in range(num_slots) if there[slot]]
        assert float(share[0, place]) == pytest.approx(density(place, ones, num_slots, sigma))


CHOICES = [
    ("llada_gqa", D2Cache(masks=4, sigma=3), {}),
    ("llada_gqa", D2Cache(masks=11, rollout=0.4, gap=0), {"scheduler": "threshold:0.4"}),
    ("dream_gqa", D2Cache(masks=5, rollout=0, gap=2), {"scheduler": "certainty_density"}),
    ("dream_gqa", D2Cache(masks=9, rollout=0.3), {"scheduler": "dream:entropy,steps=12"}),
    ("llada_gqa", D2Cache(masks=6), {"scheduler": "rcr:12"}),
]


@pytest.mark.few(1)
@pytest.mark.parametrize(("name", "cache", "given"), CHOICES)
def test_what_is_fed_is_the_rule(name: str, cache: D2Cache, given: Any) -> None:
    spec, checked = golden_model(name).spec, 0
    for canvas, _ in steps(name, cache, **given):
        fed = cache.feeds(canvas, spec)
        for row in range(4):
            if canvas.active[row]:
                likely, expected = choice(cache, canvas, row, spec.logit_shift)
                assert set(fed[row].nonzero().flatten().tolist()) == expected
                num_masks = int(canvas.masked[row, : int(canvas.length[row])].sum())
                assert len(likely) == min(cache.masks, num_masks)
                checked += 1
            else:
                assert not fed[row].any()
    assert checked > 20


@pytest.mark.parametrize("scheduler", ["fixed_quota", "token_editing:0.4,post_steps=3", "rcr:12"])
def test_what_a_step_changes_is_fed_at_the_next(scheduler: str) -> None:
    cache, num_changed = D2Cache(masks=2, rollout=0, gap=0), 0
    spec, before = golden_model("llada_gqa").spec, None
    for canvas, event in steps("llada_gqa", cache, scheduler=scheduler):
        fed = cache.feeds(canvas, spec)
        if before is not None:
            changed = before != canvas.tokens
            changed &= canvas.active[:, None]
            assert (fed | ~changed).all()
            assert not (fed & ~changed & ~canvas.masked).sum(1).gt(8).any()
            num_changed += int(changed.sum())
        before = canvas.tokens.clone()
        assert event.kind == "step" or canvas.step.max() == 1
    assert num_changed > 40


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_confidences_are_those_of_the_last_pass(name: str) -> None:
    """Everything is fed, so that each must be what a full pass of its row gives."""
    cache, model = D2Cache(masks=10, rollout=1), golden_model(name)
    shift, mask = model.spec.logit_shift, model.spec.mask_token_id
    before: list[Tensor] | None = None
    num_checked = 0
    for canvas, event in steps(name, cache, at_eos="ignore"):
        lengths = canvas.length.tolist()
        if before is None:
            before = [
                torch.where(canvas.fixed[row, :n], canvas.tokens[row, :n], mask)
                for row, n in enumerate(lengths)
            ]
        for row, tokens in enumerate(before):
            logits = model.network(tokens[None])[0].float()
            best = logits.index_fill(1, torch.tensor([mask]), -torch.inf).argmax(1, keepdim=True)
            expected = logits.softmax(1).gather(1, best)[:, 0]
            start = int(event.columns[row, 0])
            masked = [c for c in range(len(tokens)) if tokens[c] == mask]
            # The first pass judges all masks, later ones as many as are chosen.
            judged = masked if canvas.step.max() == 1 else [c for c in masked if c < start + 8]
            given = canvas.cache_state.confidence[row]
            for column in judged:
                assert float(given[column]) == pytest.approx(float(expected[column - shift]), 1e-4)
            num_checked += len(judged)
        before = [canvas.tokens[row, :n].clone() for row, n in enumerate(lengths)]
    assert num_checked > 200


@pytest.mark.parametrize("name", NAMES)
def test_logits_beyond_the_window_are_of_fed_columns(name: str) -> None:
    num_asked, shift = [0], golden_model(name).spec.logit_shift

    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        assert plan.policy is not None
        extra = plan.policy.further
        assert extra is not None
        spare = store.shape.num_columns - 1
        head = plan.logit_rows[:, -extra.shape[1] :]
        asked = extra < spare
        assert (plan.positions.gather(1, head) == extra - shift)[asked].all()
        window = plan.positions.gather(1, plan.logit_rows[:, :8]) + shift
        assert not (extra[..., None] == window[:, None]).any()
        num_asked.append(int(asked.sum()))

    watch(name, "d2cache:12", check)
    assert num_asked[1] == 3 * 16
    assert all(0 < count <= 3 * 12 for count in num_asked[2:10])


def test_importance_is_that_of_the_row_itself() -> None:
    """Not of a variant that lost, nor of the half of a guided pass that does not see the prompt."""

    def first(count: int, **given: Any) -> list[Tensor]:
        found = []
        for canvas, _ in steps("llada_gqa", D2Cache(masks=4, rollout=1), **given):
            found.append(canvas.cache_state.importance.clone())
            if len(found) == count:
                break
        return found

    torch.testing.assert_close(first(1, guidance_scale=0.5), first(1))
    # With everything fed, a pass over variants is a full pass over the best.
    scheduler, model = "lopa:0.6,branches=3", golden_model("llada_gqa")
    passes: list[tuple[Tensor, Tensor]] = []

    def exact(seen: Any) -> None:
        store = model.new_store(4, seen.canvas.layout.num_stored)
        plan = replace(every_column(seen.canvas, model.spec, store=True), policy=KeptWeights())
        model.forward(seen.canvas.tokens.gather(1, plan.positions), plan, store)
        real = torch.arange(plan.num_keys) < seen.canvas.length[:, None]
        rollout = attention_rollout(store.weights, plan.positions, real)
        passes.append((rollout, seen.window.active))  # a finished row feeds nothing

    options = Settings(cache=D2Cache(rollout=1), **{**SLOTS, "scheduler": scheduler})
    running = Stream(model, random_prompts(4), options, observer=exact)
    for _ in running:
        rollout, active = passes[-1]
        found = running.canvas.cache_state.importance
        torch.testing.assert_close(found[active], rollout[active])
    assert len(passes) > 4


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_fed_is_written_and_one_pass_feeds_all(name: str) -> None:
    kinds = []

    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        assert plan.stored is not None
        for old, new in zip(before, (*store.keys, *store.values), strict=True):
            changed = (old != new).flatten(1).any(1).nonzero().flatten()
            assert set(changed.tolist()) <= set(store.slots(plan.stored).flatten().tolist())
        kinds.append(plan.kind)

    watch(name, "d2cache:4", check)
    assert kinds[0] == "refresh"
    assert kinds.count("refresh") == 1


@pytest.mark.parametrize("masked", [False, True])
def test_explicit_attention_is_attention(masked: bool) -> None:
    source = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, n, 6, dtype=torch.float64, generator=source)
        for heads, n in ((4, 5), (2, 9), (2, 9))
    )
    mask = torch.rand(2, 1, 5, 9, generator=source) < 0.6 if masked else None
    mixed, weights = explicit_attention(q, k, v, mask)
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(mixed, fused)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5, dtype=weights.dtype))
    assert mask is None or (weights[~mask[:, 0]] == 0).all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), num_fed=st.integers(1, 9), num_layers=st.integers(1, 4))
def test_rollout_is_a_product_of_whole_matrices(seed: int, num_fed: int, num_layers: int) -> None:
    source = torch.Generator().manual_seed(seed)
    num_keys, length = 9, int(torch.randint(1, 10, (), generator=source))
    columns = torch.randperm(num_keys, generator=source)[:num_fed].sort().values
    real = torch.arange(num_keys) < length
    maps, product = [], torch.eye(num_keys)
    for _ in range(num_layers):
        weights = torch.rand(num_fed, num_keys, generator=source) * real
        weights = weights / weights.sum(1, keepdim=True)
        maps.append(weights[None])
        whole = torch.eye(num_keys)
        for place, column in enumerate(columns.tolist()):
            whole[column] = weights[place]
        whole = whole + torch.eye(num_keys)
        product = whole / whole.sum(1, keepdim=True) @ product
    expected = product[:length].sum(0)
    # A spare column behind the last key, fed where a row feeds fewer than others.
    padded = torch.cat([columns, torch.tensor([num_keys + 4])])[None]
    maps = [torch.cat([m, torch.rand(1, 1, num_keys, generator=source)], 1) for m in maps]
    torch.testing.assert_close(attention_rollout(maps, padded, real[None])[0], expected)


class Silent:
    """A model that leaves no attention weights."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore) -> Tensor:
        logits = self.model.forward(tokens, plan, store)
        store.weights.clear()
        return logits


def test_a_model_without_attention_weights_is_told_so() -> None:
    silent: Any = Silent(golden_model("llada_gqa"))
    with pytest.raises(ValueError, match=r"left none in `store\.weights`"):
        dllm.generate(silent, [[1, 2, 3]], cache="d2cache", **SLOTS)


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ("sparse:1.5", "keep=1.5 must be a share between 0 and 1"),
        ("sparse:kernel=4", "kernel=4 must be odd"),
        ("sparse:delay=-1", "delay=-1 must be at least 0"),
        ("d2cache:0", "masks=0 must be at least 1"),
        ("d2cache:rollout=-0.1", "rollout=-0.1 must be a share"),
        ("d2cache:sigma=0", "sigma=0.* must be positive"),
        ("d2cache:gap=-1", "gap=-1 must be at least 0"),
        ("dllm_cache:0", "prompt_every=0 must be at least 1"),
        ("dllm_cache:adaptive=2", "adaptive=2.* must be a share"),
        ("dual:refresh_every=0", "refresh_every=0 must be at least 1, or none"),
        ("prefix:refresh_every=0", "refresh_every=0 must be at least 1, or none"),
    ],
)
def test_wrong_options_are_explained(cache: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dllm.cache.registry.create(cache)


# dLLM-Cache


@pytest.mark.few(2)
@pytest.mark.parametrize("given", some(FORMS, every=2))
def test_computing_all_at_each_pass_is_exact(given: Any) -> None:
    exact = run("llada_gqa", "none", seed=0, **given).sequences
    adaptive = "dllm_cache:1,answer_every=9,adaptive=1"
    assert run("llada_gqa", adaptive, seed=0, **given).sequences == exact
    if not given:
        assert run("llada_gqa", "dllm_cache:1,answer_every=1").sequences == exact
        assert run("llada_gqa", "dllm_cache:9,answer_every=9").sequences != exact


def computed(model: dllm.HostedModel) -> list[list[int]]:
    """Notes how many columns attention and feed-forward of each layer compute in each pass."""
    counts: list[list[int]] = []

    def note(_: Any, args: Any) -> None:
        counts.append([args[0].shape[1]])

    for block in model.network.blocks:
        for part in ("attention", "feed_forward"):
            block.get_submodule(part).register_forward_pre_hook(note)
    return counts


def test_each_pass_computes_what_is_due() -> None:
    model = dllm.load("tests/golden/models/llada_gqa", dtype="float64")
    counts, num_parts = computed(model), 2 * len(model.network.blocks)
    options: dict[str, Any] = {**SLOTS, "at_eos": "ignore"}
    cache = "dllm_cache:6,answer_every=4,adaptive=0.3"
    out = dllm.generate(model, [[5] * 10], cache=cache, **options)
    assert out.metrics.forwards == {"refresh": 2, "step": 22}
    for number in range(24):
        passed = [count for (count,) in counts[num_parts * number : num_parts * (number + 1)]]
        prompt, answer = number % 6 == 0, number % 4 == 0
        later = 34 if prompt else 24 if answer else floor(0.3 * 24)
        assert passed == [34] * 2 + [later] * (num_parts - 2)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_values_are_all_new_and_keys_where_values_drifted(name: str) -> None:
    model, num_adaptive, differing = golden_model(name), 0, []
    lengths = [len(prompt) for prompt in random_prompts(3)]

    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        nonlocal num_adaptive
        assert isinstance(plan.policy, FeatureReuse)
        if plan.policy.num_fresh:
            return
        num_adaptive += 1
        layers, width = len(store.keys), store.shape.num_columns
        for row, start in enumerate(lengths):
            answer = range(row * width + start, row * width + start + 24)
            chosen = []
            for layer in range(1, layers):
                old, new = before[layers + layer], store.values[layer]
                likeness = {
                    slot: float(F.cosine_similarity(old[slot].flatten(), new[slot].flatten(), 0))
                    for slot in answer
                }
                expected = set(sorted(answer, key=lambda slot: likeness[slot])[:6])
                changed = (before[layer] != store.keys[layer]).flatten(1).any(1)
                assert {slot for slot in answer if changed[slot]} == expected
                assert not changed[row * width : row * width + start].any()
                assert (old != new).flatten(1).any(1)[list(answer)].all()
                chosen.append(expected)
            differing.append(chosen[0] != chosen[-1])

    watched: Any = Watched(model, check)
    given = {**SLOTS, "at_eos": "ignore"}
    cache = "dllm_cache:50,answer_every=50,adaptive=0.25"
    dllm.generate(watched, random_prompts(3), cache=cache, **given)
    assert num_adaptive == 23
    assert any(differing), "all layers choose the same"


def test_a_pass_over_the_prompt_leaves_the_answer_as_it_was() -> None:
    remembered: dict[int, Tensor] = {}
    lengths, num_checked = [len(prompt) for prompt in random_prompts(3)], 0

    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        nonlocal num_checked
        if remembered and isinstance(plan.policy, FeatureReuse) and plan.policy.num_fresh:
            num_checked += 1
            for place in range(2, len(store.features)):
                changed = (remembered[place] != store.features[place]).any(-1)
                for row, length in enumerate(lengths):
                    assert changed[row, :length].all()
                    assert not changed[row, length:].any()
        remembered.update({place: held.clone() for place, held in store.features.items()})

    cache = "dllm_cache:2,answer_every=99,adaptive=0"
    watch("llada_gqa", cache, check, at_eos="ignore")
    assert num_checked == 11


def test_variants_of_a_row_reuse_what_the_row_has() -> None:
    num_compared, lengths = 0, [len(prompt) for prompt in random_prompts(3)]

    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        nonlocal num_compared
        if len(tokens) == store.shape.num_rows:
            num_compared += 1
            for place in range(2, len(store.features)):
                of_row = store.features[place].unflatten(0, (3, -1))
                for row, length in enumerate(lengths):
                    prompt = of_row[row, :, :length]
                    assert (prompt == prompt[:1]).all()
                    assert prompt.any()

    watch("llada_gqa", "dllm_cache:50,answer_every=50", check, scheduler="lopa:0.6,branches=3")
    assert num_compared > 3


def test_nothing_computed_again_gives_the_same_again() -> None:
    """Without refreshes only the first layer sees the new token."""
    model = golden_model("llada_gqa")
    shape = model.new_store(1, 40)
    tokens = torch.arange(12)[None]
    columns = torch.arange(12)[None]
    nothing, every = torch.zeros(1, 12, dtype=torch.bool), torch.ones(1, 12, dtype=torch.bool)
    none = torch.zeros(1, 1, dtype=torch.int64)
    plan = StepPlan("step", columns, columns, 12, stored=columns)
    full = replace(plan, policy=FeatureReuse(every, nothing, none, 12, 0, (0,)))
    first = model.forward(tokens, full, shape)
    torch.testing.assert_close(first, model.network(tokens))
    reused = replace(plan, policy=FeatureReuse(nothing, nothing, none, 0, 0, (0,)))
    assert torch.equal(model.forward(tokens, reused, shape), first)
    changed = tokens.index_fill(1, torch.tensor([3]), 99)
    assert not torch.equal(model.forward(changed, reused, shape), first)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_flops_are_those_of_what_is_computed(name: str) -> None:
    model, counter = golden_model(name, "float32"), FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        out = dllm.generate(model, random_prompts(3), cache="dllm_cache:6,answer_every=4", **SLOTS)
    assert out.metrics.flops == counter.get_total_flops()
    exact = dllm.generate(model, random_prompts(3), **SLOTS).metrics
    assert 0 < (out.metrics.flops or 0) < 0.8 * (exact.flops or 0)


def test_values_alone_are_those_of_the_projection() -> None:
    for name in MODELS:
        attention: Any = golden_model(name).network.blocks[0].get_submodule("attention")
        x = torch.randn(2, 5, attention.config.hidden_size, dtype=torch.float64)
        torch.testing.assert_close(attention.values(x), attention.project(x)[2])
    config = replace(golden_model("dream_gqa").network.config, fused_qkv=True)
    fused = Attention(config).double()
    x = torch.randn(2, 5, config.hidden_size, dtype=torch.float64)
    torch.testing.assert_close(fused.values(x), fused.project(x)[2])


def test_slots_of_a_long_prompt_end_before_those_of_the_most_slots() -> None:
    """The row of the fewest slots has the longest prompt: the most slots behind it are too many."""
    model, mask = golden_model("llada_mha"), golden_model("llada_mha").spec.mask_token_id
    rows = [[*range(40), mask, mask], [1, *[mask] * 40]]
    options: dict[str, Any] = {"infill": True, "cache": "d2cache", "block_length": 2}
    together = dllm.generate(model, rows, **options)
    alone = [dllm.generate(model, [row], **options).sequences[0] for row in rows]
    assert list(together.sequences) == alone
