"""Dynamic-dLLM's cache: what a pass computes by hand, and whole runs beside the published loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dllm
from dllm.cache.dynamic_dllm import DynamicCache, LayerBudgets
from dllm.models.layer_policies import FeatureReuse
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.progress import Progress, settle
from dllm.state.store import KVStore
from tests.support.feature_rows import FeatureRow, decoded
from tests.support.marks import crossed
from tests.support.models import Watched, golden_model, random_prompts
from tests.support.views import layout_of

NAMES = ("llada_gqa", "dream_gqa")
SLOTS: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "at_eos": "ignore"}


def canvas_of(commit_step: list[int], prompt: int) -> Canvas:
    """Returns a canvas of one row with columns committed in these steps, -1 for masks."""
    layout = replace(layout_of(1, len(commit_step)), num_slots=len(commit_step) - prompt)
    done = torch.tensor([commit_step])
    slots = torch.arange(len(commit_step)) >= prompt
    tokens = torch.where((done < 0) & slots, layout.mask_token_id, 5)
    canvas = Canvas(layout, tokens, ~slots[None], torch.tensor([prompt]))
    canvas.commit_step = done.int()
    return canvas


def policy_of(cache: DynamicCache, canvas: Canvas, forwards: int, *counts: int) -> FeatureReuse:
    progress = Progress(True, False, False, 8, 12, 12, 0, False, 1, 1, forwards, 8, (False,))
    if counts:
        canvas.note_pass(LayerBudgets(torch.tensor([counts])))
        progress = replace(progress, counts=counts)
    spec = golden_model("llada_gqa").spec
    policy = cache.plan(canvas, progress, spec).policy
    assert isinstance(policy, FeatureReuse)
    return policy


def test_a_pass_by_hand() -> None:
    # Three of a prompt; columns 4 and 9 were written last, 5 before them.
    canvas = canvas_of([-1, -1, -1, -1, 2, 0, -1, -1, -1, 2, -1, -1], 3)

    def fresh(cache: DynamicCache, forwards: int = 1) -> list[int]:
        return policy_of(cache, canvas, forwards).fresh[0].nonzero()[:, 0].tolist()

    assert fresh(DynamicCache(window=2)) == [8, 9, 10]
    assert fresh(DynamicCache(window=3)) == [8, 9, 10]
    assert fresh(DynamicCache(window=0)) == [9]
    assert fresh(DynamicCache(window=0, budget=0)) == []
    assert fresh(DynamicCache(window=6)) == [5, 6, 7, 8, 9, 10, 11]  # moved to the left by one
    assert fresh(DynamicCache(window=9)) == fresh(DynamicCache(window=99)) == list(range(3, 12))
    assert fresh(DynamicCache(window=2), 7) == list(range(3, 12))
    assert fresh(DynamicCache(50, 9, window=2), 50) == [0, 1, 2, 8, 9, 10]
    assert fresh(DynamicCache(window=2), 0) == list(range(12))
    nothing = canvas_of([-1] * 12, 3)
    assert policy_of(DynamicCache(window=2), nothing, 1).fresh[0].nonzero()[:, 0].tolist() == [
        3,
        4,
        5,
    ]


def test_parts_by_hand() -> None:
    canvas, cache = canvas_of([-1] * 11 + [0], 3), DynamicCache(window=2, budget=2)
    even = policy_of(cache, canvas, 1)
    assert even.count.tolist() == [[2]]
    assert even.num_chosen == (2,)
    uneven = policy_of(cache, canvas, 2, 0, 7, 3)
    assert uneven.count.tolist() == [[0, 6, 3]]  # six are outside the window
    assert uneven.num_chosen == (0, 7, 3)
    assert [uneven.most_in(layer, 4) for layer in (1, 2, 3)] == [0, 7, 3]
    assert policy_of(cache, canvas, 7, 0, 7, 3).num_chosen == (0,)
    # exp(0), exp(200 * 0.01) and exp(200 * 0.02) of 6 columns: 0.119, 0.88 and 6.5 of 7.5.
    shape, device = golden_model("llada_gqa").new_store(1, 12).shape, torch.device("cpu")
    store = KVStore(shape, torch.float64, [device] * 3)
    store.change[:] = [torch.tensor([0.01]), torch.tensor([0.02])]
    parts = torch.tensor([0.0, 2.0, 4.0]).exp()
    expected = (6 * parts / parts.sum()).floor().long().tolist()[1:]
    assert expected == [0, 5]
    nobody: Any = None
    assert cache.watch(canvas, nobody, store, nobody, None).counts.tolist() == [expected]
    assert DynamicCache(budget=2, sharpness=0).watch(
        canvas, nobody, store, nobody, None
    ).counts.tolist() == [[2, 2]]


def test_the_host_learns_the_most_of_rows_that_go_on() -> None:
    layout = replace(layout_of(3, 6), num_slots=4, lengths=(6, 6, 6))
    tokens = torch.full((3, layout.num_stored), 5)
    tokens[:, 2:6] = layout.mask_token_id
    fixed = torch.ones_like(tokens, dtype=torch.bool)
    fixed[:, 2:6] = False
    canvas = Canvas(layout, tokens, fixed, torch.tensor([2, 2, 2]))
    assert settle(canvas, lockstep=False, at_eos="ignore").counts == ()
    canvas.note_pass(LayerBudgets(torch.tensor([[1, 7], [9, 9], [3, 2]])))
    tokens[1, 2:6] = 5
    canvas.writes += 1
    progress = settle(canvas, lockstep=False, at_eos="ignore")
    assert progress.counts == (3, 7)
    assert progress.finished == (False, True, False)
    assert progress.joined([progress]).counts == ()


class PublishedRow(FeatureRow):
    """The authors' passes over one row, with their counter from 1 on."""

    def __init__(self, network: Any, start: int, cache: DynamicCache) -> None:
        super().__init__(network)
        self.start, self.cache, self.step = start, cache, 0
        self.change: list[float] = []  # of each layer in the last pass, from the second one on

    def window(self, last: int, length: int) -> list[int]:
        """Returns the columns around the last one, counted in the answer."""
        size, radius = self.cache.window, self.cache.window // 2
        if not (size or self.cache.budget):
            return []
        if size >= length:
            return list(range(length))
        begin, end = last - radius, last + radius + 1
        if begin < 0:
            begin, end = 0, end - begin
        if end > length:
            begin, end = begin - (end - length), length
        return list(range(begin, end))

    def __call__(self, row: Tensor, last: int) -> Tensor:
        cache, start, total, x = self.cache, self.start, len(row), self.network.embedding(row)
        prompt, answer = list(range(start)), list(range(start, total))
        depth = len(self.network.blocks)
        parts = [float(cache.budget)] * depth
        if self.step >= 2:
            heat = cache.sharpness * torch.tensor(self.change, dtype=torch.float64)
            parts = (cache.budget * depth * heat.softmax(0)).tolist()
        change = []
        for layer in range(depth):
            prompt_now = layer == 0 or self.step % cache.prompt_every == 0
            answer_now = layer == 0 or self.step % cache.answer_every == 0
            columns, values = [*prompt] if prompt_now else [], []
            if answer_now:
                columns += answer
                change.append(0.0)
            else:
                old, new = self.values(layer, x, answer)
                moved = 1 - torch.cosine_similarity(old, new, dim=-1)
                change.append(float(moved.mean()))
                near = self.window(last - start, len(answer))
                far = [at for at in range(len(answer)) if at not in near]
                far = sorted(far, key=lambda at: -float(moved[at]))[: int(parts[layer] + 1e-6)]
                columns += [start + at for at in near + far]
                values = answer
            x = self.run(layer, x, columns, values=values)
        self.change = change if self.step else [0.0] * depth
        self.step += 1
        return self.logits(x)


SETTINGS = [
    DynamicCache(100, 7, window=4, budget=3),
    DynamicCache(5000, 5000, window=4, budget=3, sharpness=0),
    DynamicCache(5, 4, window=0, budget=4, sharpness=60),
    DynamicCache(9, 50, window=7, budget=2, sharpness=20),
    DynamicCache(50, 50, window=0, budget=0),
    DynamicCache(50, 50, window=40, budget=2),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("cache", "name", "block", "rows", "seed"),
    crossed(SETTINGS, NAMES, (6, 8, 24), (1, 3, 5), (1, 2, 3)),
)
def test_runs_are_the_published_loops(
    cache: DynamicCache, name: str, block: int, rows: int, seed: int
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


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "cache",
    ["dynamic_dllm:1,answer_every=1", "dynamic_dllm:1,answer_every=9,budget=999,sharpness=0"],
)
def test_computing_all_at_each_pass_is_exact(name: str, cache: str) -> None:
    model, prompts = golden_model(name), random_prompts(4)
    exact = dllm.generate(model, prompts, scheduler="fixed_quota", **SLOTS).sequences
    given = {**SLOTS, "scheduler": "fixed_quota"}
    assert dllm.generate(model, prompts, cache=cache, **given).sequences == exact
    stale = dllm.generate(model, prompts, cache="dynamic_dllm:99,answer_every=99,window=4", **given)
    assert stale.sequences != exact


@pytest.mark.parametrize("name", NAMES)
def test_flops_are_those_of_what_is_computed(name: str) -> None:
    model, counter = golden_model(name, "float32"), FlopCounterMode(display=False)
    cache = "dynamic_dllm:6,answer_every=4,window=2,budget=3,sharpness=20"
    options = {**SLOTS, "cache": cache, "scheduler": "fixed_quota"}
    with counter, sdpa_kernel(SDPBackend.MATH):
        metrics = dllm.generate(model, random_prompts(3), **options).metrics
    assert metrics.flops == counter.get_total_flops()
    exact = dllm.generate(model, random_prompts(3), **{**options, "cache": "none"}).metrics
    assert 0 < (metrics.flops or 0) < 0.8 * (exact.flops or 0)


def test_layers_get_parts_of_their_own() -> None:
    found = []

    def check(tokens: Tensor, plan: StepPlan, store: KVStore, *_: Any) -> None:
        assert isinstance(plan.policy, FeatureReuse)
        assert len(store.change) == len(store.keys) - 1
        found.append(plan.policy.num_chosen)

    watched: Any = Watched(golden_model("llada_gqa"), check)
    cache = "dynamic_dllm:99,answer_every=99,window=2,budget=4,sharpness=60"
    dllm.generate(watched, random_prompts(3), cache=cache, scheduler="fixed_quota", **SLOTS)
    assert found[:2] == [(0,), (4, 4)]
    assert any(first != second for first, second in found[2:])


class Silent:
    """A model that does not tell how much its layers changed."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore) -> Tensor:
        logits = self.model.forward(tokens, plan, store)
        store.change.clear()
        return logits


def test_a_model_that_does_not_tell_is_told_so() -> None:
    silent: Any = Silent(golden_model("llada_gqa"))
    with pytest.raises(ValueError, match=r"left nothing in `store\.change`"):
        dllm.generate(silent, [[1, 2, 3]], cache="dynamic_dllm", **SLOTS)


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ("dynamic_dllm:0", "prompt_every=0 must be at least 1"),
        ("dynamic_dllm:window=-1", "window=-1 must be at least 0"),
        ("dynamic_dllm:sharpness=-1", "sharpness=-1.* must be 0 or more"),
    ],
)
def test_wrong_options_are_explained(cache: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dllm.cache.registry.create(cache)
