"""A plan is kept while no row moves: it is the one that would be made, whatever happens to rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm.cache.base import Cache, Canvas, HostCount, ModelSpec, Progress, StepPlan
from dllm.cache.block_causal import BlockCausalCache
from dllm.cache.encoder import EncoderCache
from dllm.state.rows import copied, release_rows, reseat, seat_rows
from tests.support.exactness import RAGGED, SLOTS
from tests.support.marks import crossed
from tests.support.models import BLOCK, MASK, family_model, random_prompts

MODELS = ("sdar", "fast_dllm_v2", "causal", "bd3lm", "nemotron")
ENCODERS = ("e2d2", "e2d2_shared")
FORCES = ("fast_dllm_v2", "nemotron")
ENDS: list[dict[str, Any]] = [{"at_eos": rule} for rule in ("ignore", "skip", "block", "truncate")]
# What moves rows: quotas together, thresholds each by itself; blocks that end elsewhere, rows that
# are held or cut off, windows of the whole region, several canvases of a row.
METHODS: list[dict[str, Any]] = [
    {"scheduler": "fixed_quota"},
    {"scheduler": "threshold:0.2"},
    {"scheduler": "multi_block:0.3,blocks=3"},
    {"scheduler": "token_editing:0.3,editing_threshold=0.2,post_steps=3"},
    {"scheduler": "remdm:remask=2,begin=0.5,loops=4"},
    {"scheduler": "end_of_text:threshold:0.4"},
    {"scheduler": "certainty_density:0.4"},
    {"scheduler": "dream:entropy"},
    {"scheduler": {"name": "adablock", "delimiters": (6, 47, 113), "inner": "threshold:0.4"}},
    {"scheduler": "threshold:0.2", "verifier": "ssd:3"},
    {"scheduler": "threshold:0.2", "verifier": "freedave:4,execution=tree"},
    {"scheduler": "threshold:0.2", "temperature": 0.8},
    {"scheduler": "threshold:0.2", "block_length": 4},
    {"scheduler": "threshold:0.2", "batch_size": 2},
    {"scheduler": "fixed_quota", "batch_size": 3},
    *({"scheduler": "threshold:0.2", **ends} for ends in ENDS),
]


def same(plan: StepPlan, other: StepPlan) -> bool:
    def alike(one: Any, two: Any) -> bool:
        return torch.equal(one, two) if isinstance(one, Tensor) else one == two

    return all(alike(value, getattr(other, name)) for name, value in vars(plan).items())


@dataclass
class Asked:
    """A cache whose plans are compared with those that nothing is kept for, and its counts."""

    cache: Cache
    found: list[StepPlan] = field(default_factory=list)
    asked: list[Progress] = field(default_factory=list)

    @classmethod
    def of(cls, cache: Cache) -> Asked:
        asked = cls(cache)
        object.__setattr__(cache, "plan", asked.plan)
        return asked

    def own(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        """Returns the plan that the cache makes, or kept."""
        return type(self.cache).plan(self.cache, canvas, progress, spec)

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        plan, alone = self.own(canvas, progress, spec), copied(canvas)
        assert same(plan, self.own(alone, progress, spec))
        assert progress.num_fed == int(self.cache.feeds(alone, spec).sum(1).max())
        assert progress.finished == tuple(alone.finished.tolist())
        if isinstance(self.cache, BlockCausalCache) and not progress.entered:
            assert plan.forced is None
            assert not self.cache._unbegun(alone).any()
        self.found.append(plan)
        self.asked.append(progress)
        return plan


def run(name: str, options: dict[str, Any], cache: Cache) -> None:
    """Decodes rows of many lengths, with all plans as they should be."""
    asked, rows = Asked.of(cache), [*RAGGED, *random_prompts(3, seed=1, high=30)]
    settled = {**SLOTS, "seed": 0, "cache": cache, **options}
    assert dllm.generate(family_model(name), rows, **settled).metrics.num_forwards
    assert asked.found


def num_kept(plans: list[StepPlan]) -> int:
    return sum(plan is before for before, plan in itertools.pairwise(plans))


@pytest.mark.parametrize(("name", "options"), crossed(MODELS, METHODS))
def test_a_kept_plan_is_the_one_that_would_be_made(name: str, options: dict[str, Any]) -> None:
    for chunk in (None, BLOCK):
        run(name, options, BlockCausalCache(prefill_chunk=chunk))


@pytest.mark.parametrize(("name", "options"), crossed(FORCES, METHODS))
def test_so_it_is_where_first_tokens_are_forced(name: str, options: dict[str, Any]) -> None:
    run(name, options, BlockCausalCache(first_token="force"))


SERVED = [options for options in METHODS if "tree" not in str(options)]


@pytest.mark.parametrize(("name", "again", "options"), crossed(ENCODERS, (False, True), SERVED))
def test_so_it_is_of_an_encoder(name: str, again: bool, options: dict[str, Any]) -> None:
    run(name, {**options, "block_length": BLOCK}, EncoderCache(again))


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("sdar", BlockCausalCache()),
        ("fast_dllm_v2", BlockCausalCache()),
        ("fast_dllm_v2", BlockCausalCache(first_token="force")),
        ("e2d2", EncoderCache()),
    ],
)
def test_a_block_has_two_plans(name: str, cache: Cache) -> None:
    """The first pass feeds what became full before it, too; all others feed the same columns."""
    asked, rows = Asked.of(cache), [[5] * BLOCK, [6] * (2 * BLOCK)]
    settled: dict[str, Any] = {"scheduler": "fixed_quota", "at_eos": "ignore", "cache": cache}
    settled |= {"max_new_tokens": 2 * BLOCK, "block_length": BLOCK}
    dllm.generate(family_model(name), rows, **settled)
    assert len(asked.found) == 2 * BLOCK
    assert num_kept(asked.found) == 2 * (BLOCK - 2)


def test_a_plan_is_kept_when_a_row_has_ended() -> None:
    """Row 0 is full after 8 steps, row 1 goes on with a second block: again two plans."""
    asked = Asked.of(BlockCausalCache())
    rows = [[5] * BLOCK + [MASK] * BLOCK, [6] * BLOCK + [MASK] * (2 * BLOCK)]
    settled: dict[str, Any] = {"scheduler": "fixed_quota", "infill": True, "cache": asked.cache}
    dllm.generate(family_model("sdar"), rows, block_length=BLOCK, **settled)
    assert num_kept(asked.found) == 2 * (BLOCK - 2)


def moment(name: str, **options: Any) -> tuple[Asked, Canvas, Progress]:
    """Returns a cache in the middle of a block, with its plan kept, and what it is asked with."""
    asked = Asked.of(BlockCausalCache())
    rows = [[5] * BLOCK, [6] * (2 * BLOCK), [7] * (2 * BLOCK + 3)]
    settled: dict[str, Any] = {"scheduler": "fixed_quota", "at_eos": "ignore", "cache": asked.cache}
    settled |= {"max_new_tokens": 2 * BLOCK, "block_length": BLOCK, **options}
    running = dllm.stream(family_model(name), rows, **settled)
    events = iter(running)
    while num_kept(asked.found) < 2:
        next(events)
    canvas, progress = running.canvas, asked.asked[-1]
    assert asked.own(canvas, progress, family_model(name).spec) is asked.found[-1]
    return asked, canvas, progress


def ends(canvas: Canvas) -> None:
    release_rows(canvas, torch.tensor([1]))


def moves(canvas: Canvas) -> None:
    canvas.block_start = canvas.block_start + torch.tensor([BLOCK, 0, 0])


def reads_again(canvas: Canvas) -> None:
    canvas.clean = torch.minimum(canvas.clean, torch.tensor([8, 0, 8]))


def is_cut(canvas: Canvas) -> None:
    canvas.length = canvas.length - torch.tensor([0, 3 * BLOCK // 2, 0])


def begins_elsewhere(canvas: Canvas) -> None:
    canvas.prompt_length = canvas.prompt_length - torch.tensor([3, 0, 0])


def looks_elsewhere(canvas: Canvas) -> None:
    canvas.first_block = canvas.first_block - torch.tensor([0, BLOCK, 0])


def changes_seats(canvas: Canvas) -> None:
    reseat(canvas, torch.tensor([2, 0, 1]))


def gives_its_seat(canvas: Canvas) -> None:
    seat_rows(canvas, torch.tensor([1]), copied(canvas), torch.tensor([0]))


def loses_a_row(canvas: Canvas) -> None:
    reseat(canvas, torch.tensor([2, 0]))


WHOLE_REGION = {"scheduler": "certainty_density:0.9"}
HAPPENS = [
    *((does, "sdar", {}) for does in (ends, moves, reads_again, is_cut)),
    *((does, "sdar", {}) for does in (changes_seats, gives_its_seat, loses_a_row)),
    (begins_elsewhere, "bd3lm", {}),
    (looks_elsewhere, "sdar", WHOLE_REGION),
]


@torch.inference_mode()
@pytest.mark.parametrize(("happens", "name", "options"), HAPPENS)
def test_no_plan_outlives_what_it_was_made_from(
    happens: Any, name: str, options: dict[str, Any]
) -> None:
    asked, canvas, progress = moment(name, **options)
    before, spec = asked.found[-1], family_model(name).spec
    happens(canvas)
    now = asked.own(canvas, progress, spec)
    assert same(now, asked.own(copied(canvas), progress, spec))
    assert not same(now, before)


@torch.inference_mode()
def test_no_plan_outlives_its_number_of_columns() -> None:
    asked, canvas, progress = moment("sdar")
    wider = replace(progress, num_fed=progress.num_fed + 3)
    plan = asked.own(canvas, wider, family_model("sdar").spec)
    assert plan.positions.shape[1] == progress.num_fed + 3


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_of_further_columns_is_counted_as_it_names_them(name: str) -> None:
    """Which no plan of the cache that it is made from would be right for."""

    class Generous(BlockCausalCache):
        def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
            again = (canvas.step % 2 == 0)[:, None]
            before = again & (canvas.numbers < canvas.block_start[:, None])
            return super().feeds(canvas, spec) | (before & ~canvas.finished[:, None])

    model = family_model(name)
    slots: dict[str, Any] = {**SLOTS, "scheduler": "threshold:0.3"}
    exact = dllm.generate(model, RAGGED, cache="block_causal", **slots)
    wide = dllm.generate(model, RAGGED, cache=Generous(), **slots)
    assert wide.sequences == exact.sequences
    assert wide.metrics.tokens_fed > exact.metrics.tokens_fed


SPECS = [family_model(name).spec for name in MODELS]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_the_host_counts_what_the_device_names(data: st.DataObject) -> None:
    """For rows anywhere, whatever their blocks, and first tokens that are forced or not."""
    spec = data.draw(st.sampled_from(SPECS))
    cache = BlockCausalCache(first_token=data.draw(st.sampled_from(("feed", "force"))))
    counts = cache.counting(spec)
    assert isinstance(counts, HostCount)
    number = st.integers(0, 40)
    start, clean, prompt, window = (data.draw(number) for _ in range(4))
    length, open_begin = start + data.draw(st.integers(1, 40)), data.draw(st.booleans())
    enters = data.draw(st.booleans())
    masked = torch.zeros(1, 128, dtype=torch.bool)
    masked[0, start] = open_begin
    figures = {"start": start, "length": length, "clean": clean, "prompt_length": prompt}
    rows = {name: torch.tensor([value]) for name, value in figures.items()}
    canvas: Any = SimpleNamespace(
        block_start=rows.pop("start"),
        **rows,
        masked=masked,
        numbers=torch.arange(128),
        step=torch.tensor([5]),
        entry_step=torch.tensor([5 if enters else 4]),
        finished=torch.tensor([False]),
        layout=SimpleNamespace(window_length=window),
    )
    figures |= {"step": 5, "entry_step": 5 if enters else 4, "open_begin": int(open_begin)}
    figures["moving"] = 0
    read = {name: [value] for name, value in figures.items()}
    assert counts.counted(read, window)["num_fed"] == cache.feeds(canvas, spec).sum(1).tolist()
    moving = {**read, "moving": [1], "entry_step": [0]}
    canvas.entry_step = canvas.step
    assert counts.counted(moving, window)["num_fed"] == cache.feeds(canvas, spec).sum(1).tolist()


def test_the_host_counts_anew_when_a_row_stands_elsewhere() -> None:
    counts = BlockCausalCache().counting(SPECS[0])
    assert isinstance(counts, HostCount)
    figures = {"start": [8, 16], "length": [40, 40], "clean": [8, 16], "prompt_length": [8, 8]}
    found = counts.counted(figures, BLOCK)
    assert found == counts.counted(dict(figures), BLOCK) == {"num_fed": [8, 8], "fed_end": [16, 24]}
    assert counts.counted(figures, 2 * BLOCK)["num_fed"] == [16, 16]
    for name, row, expected in (("start", 24, 16), ("length", 20, 4), ("clean", 8, 16)):
        moved = {**figures, name: [figures[name][0], row]}
        assert counts.counted(moved, BLOCK)["num_fed"] == [8, expected]
    assert counts.counted(figures, BLOCK)["num_fed"] == [8, 8]
