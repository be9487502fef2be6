"""Draft and verify changes no token, no step and no confidence, and never takes more forwards."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.decoding.passes import PassResult
from dllm.decoding.speculation import verifiers
from dllm.decoding.speculation.passes import VerifiedPasses
from dllm.eval.compare.verification import Trial, summed
from dllm.settings import resolve
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.progress import end_rows
from dllm.state.store import KVStore
from dllm.state.variants import next_match, no_drafts
from dllm.state.window import StepEvent, Window
from tests.support.laws import CONTEXT, FILTER, options_of, suited, transfers_of
from tests.support.marks import crossed, some
from tests.support.models import (
    MODELS,
    Poisoned,
    family_model,
    golden_model,
    model_of,
    random_prompts,
)
from tests.support.verified import SLOTS, check_unchanged

ADAPTIVE_BLOCKS = {"name": "adablock", "delimiters": (6, 47, 113), "inner": "threshold:0.5"}
SCHEDULERS: tuple[Any, ...] = (
    "fixed_quota",
    "fixed_quota:steps=16",
    "fixed_quota:order=margin",
    "fixed_quota:order=entropy",
    "threshold:0.9",
    "threshold:0.5",
    "fixed_quota:order=random",
    "fixed_quota:order=planned",
    "dimple:0.7,order=random",
    "dream:origin",
    "dream:entropy,order_temperature=0.5",
    "factor:1.0",
    "factor:1.0,last=passes",
    "localleap:0.7,relaxed_threshold=0.4,radius=2",
    "entropy_bound:3",
    "dream:entropy",
    "dream:topk_margin,steps=8,empty_steps=true",
    "quota_threshold:0.5,steps=8",
    "certainty_density:0.4",
    "dimple:0.7",
    "multi_block:0.4,blocks=3",
    "prophet:inner=threshold,high=2.5,mid=1.5,low=1",
    "end_of_text:threshold:0.4",
    "end_of_text:fixed_quota,rule=predicted",
    f"learn2pd:{FILTER},threshold=0.6",
    f"context_filter:{CONTEXT},threshold=0.5,far_threshold=0.7,reach=3",
    ADAPTIVE_BLOCKS,
)
FULL: tuple[str, ...] = ("none", "none:beyond_block=false", "prefix", "dual")
FULL += ("dual:vicinity_before=3,vicinity_after=5",)
STORED = ("none", "block_causal", "block_causal:prefill_chunk=8")
AT_EOS = ("ignore", "stop", "skip", "block", "truncate")
ENDS = [6, 9, 13, 29, 72, 113]  # common enough that some row of a few ends early


@st.composite
def runs(draw: st.DrawFn) -> tuple[str, list[list[int]], dict[str, Any]]:
    """Draws a model, prompts and settings with a verifier."""
    name = draw(st.sampled_from((*MODELS, "sdar", "causal")))
    caches = FULL if name in MODELS else STORED
    if name == "dream_gqa":
        caches += ("prefix:first_token=force", "dual:first_token=force")
    schedulers = SCHEDULERS if name in MODELS else [s for s in SCHEDULERS if "steps=" not in str(s)]
    variants, temperature = draw(st.integers(1, 9)), draw(st.sampled_from((0.0, 0.0, 0.7)))
    named: dict[str, Any] = draw(
        st.sampled_from(
            (
                {"name": "ssd", "draft_length": variants - 1},
                {"name": "freedave", "draft_steps": variants},
            )
        )
    )
    named["adaptive"] = draw(st.booleans())
    named["execution"] = draw(st.sampled_from(("batch", "tree", "sequential")))
    named["margin_guard"] = draw(st.sampled_from((0.0, 0.0, 0.05))) if temperature == 0 else 0.0
    scheduler = draw(st.sampled_from(schedulers))
    if "end_of_text" in scheduler:
        caches = ("none",)
    cache, at_eos = draw(st.sampled_from(caches)), draw(st.sampled_from(AT_EOS))
    if cache != "none" and at_eos == "truncate":
        named["margin_guard"] = 0.0
    options: dict[str, Any] = {
        **SLOTS,
        "scheduler": scheduler,
        "cache": cache,
        "block_length": draw(st.sampled_from((4, 8, 16) if name in MODELS else (8, 16))),
        "temperature": temperature,
        "at_eos": at_eos,
        "eos_token_id": ENDS,
        "guidance_scale": draw(st.sampled_from((0.0, 0.0, 1.0))) if name in MODELS else 0.0,
        "fixed": draw(st.sampled_from((None, {3: 5, 9: 7}))),
        "verifier": named,
    }
    prompts = random_prompts(draw(st.integers(1, 4)), seed=draw(st.integers(0, 999)))
    return name, prompts, options


@pytest.mark.parametrize("verifier", verifiers.registry.names())
def test_nothing_changes_at_the_defaults(verifier: str) -> None:
    options = {**SLOTS, "scheduler": "fixed_quota", "verifier": verifier}
    if verifier == "linear":  # which asks no scheduler
        options["scheduler"] = "threshold"
        check_unchanged(family_model("nemotron"), random_prompts(3, high=90), options)
        return
    base, fast = check_unchanged(golden_model("llada_gqa"), random_prompts(3), options)
    assert fast.metrics.num_forwards < base.metrics.num_forwards


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(run=runs())
def test_nothing_changes(run: Any) -> None:
    name, prompts, options = run
    check_unchanged(model_of(name), prompts, options)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(run=runs())
def test_nothing_changes_in_many_runs(run: Any) -> None:
    name, prompts, options = run
    check_unchanged(model_of(name), prompts, options)


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.timeout(3600)
@settings(deadline=None, max_examples=1200, suppress_health_check=[HealthCheck.too_slow])
@given(run=runs())
def test_nothing_changes_in_many_more_runs(run: Any) -> None:
    name, prompts, options = run
    check_unchanged(model_of(name), prompts, options)


@pytest.mark.parametrize(
    ("scheduler", "cache"),
    crossed(("fixed_quota", "threshold:0.9"), ("none", "prefix", "dual", "block_causal")),
)
def test_it_saves_forwards(scheduler: str, cache: str) -> None:
    model = model_of("sdar" if cache == "block_causal" else "llada_gqa")
    options = {**SLOTS, "scheduler": scheduler, "cache": cache, "block_length": 16}
    base, fast = check_unchanged(model, random_prompts(1), {**options, "verifier": "ssd"})
    assert fast.metrics.num_forwards < base.metrics.num_forwards
    assert fast.metrics.rows_fed >= base.metrics.rows_fed  # they are not free


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("scheduler", "cache"),
    crossed(
        ("end_of_text:fixed_quota,rule=predicted", ADAPTIVE_BLOCKS),
        ("none", "none:beyond_block=false"),
    ),
)
def test_drafts_end_where_a_method_moves_an_end(scheduler: Any, cache: str) -> None:
    """What passes were planned by is not the same any more, though the tokens are."""
    options = {**SLOTS, "scheduler": scheduler, "cache": cache, "max_new_tokens": 32}
    options |= {"block_length": 8, "eos_token_id": ENDS, "verifier": "ssd:5"}
    for seed in range(2):
        prompts = random_prompts(4, seed=seed)
        check_unchanged(golden_model("llada_gqa"), prompts, options)


class Deaf:
    """A model whose logits depend on the column alone: every draft is right."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model, self.num_rows = model, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        self.num_rows.append(tokens.shape[0])
        table = torch.randn(512, 128, generator=torch.Generator().manual_seed(1)).double()
        return table[plan.positions.gather(1, plan.logit_rows)]


@pytest.mark.parametrize("temperature", [0.0, 0.7])  # drafts are drawn with the noise of their step
@pytest.mark.parametrize(
    ("verifier", "num_rows", "accepted"),
    [
        ("ssd:0", [1] * 8, (8,)),
        ("ssd:3", [1, 4, 3], (1, 0, 1, 1)),  # 1 step, then 4, then the 3 that are left
        ("freedave:4", [1, 4, 3], (1, 0, 1, 1)),
        ("ssd:9", [1, 7], (1, 0, 0, 0, 0, 0, 1, 0, 0, 0)),  # no canvas without masks is run
        ("ssd:3,adaptive=true", [1, 2, 4, 1], (2, 1, 0, 1)),  # 2 canvases, twice as many, the rest
    ],
)
def test_a_model_that_never_changes_its_mind(
    verifier: str, num_rows: list[int], accepted: tuple[int, ...], temperature: float
) -> None:
    model: Any = Deaf(golden_model("llada_gqa"))
    options: dict[str, Any] = {"max_new_tokens": 8, "scheduler": "fixed_quota", "at_eos": "ignore"}
    options |= {"temperature": temperature}
    out = dllm.generate(model, [[1, 2, 3]], verifier=verifier, **options)
    assert model.num_rows == num_rows
    assert out.metrics.rows[0].accepted == accepted
    assert out.metrics.rows[0].row_forwards == out.metrics.rows_fed == sum(num_rows)
    assert out.metrics.num_forwards == out.metrics.rows[0].forwards == len(num_rows)


def test_the_pass_that_forces_a_first_token_drafts_what_follows() -> None:
    model: Any = Deaf(golden_model("dream_gqa"))
    options: dict[str, Any] = {"max_new_tokens": 8, "scheduler": "fixed_quota"}
    options |= {"cache": "dual:first_token=force", "verifier": "ssd:3", "at_eos": "ignore"}
    dllm.generate(model, [[1, 2, 3]], **options)
    assert model.num_rows == [1, 4, 4]  # 4 canvases have places in the store; 3 are left


class Failing(Deaf):
    """Gives no number for the last column once half of the others are there."""

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        logits = super().forward(tokens, plan, store)
        late = (tokens == self.model.spec.mask_token_id).sum(1) <= 4
        logits[late, 7] = float("nan")
        return logits


def test_broken_logits_leave_the_same_behind() -> None:
    model: Any = Failing(golden_model("llada_gqa"))
    kept: list[Any] = []
    options: dict[str, Any] = {"max_new_tokens": 8, "at_eos": "ignore"}
    options |= {"scheduler": "fixed_quota:4"}
    for verifier in (None, "ssd:6"):
        with pytest.raises(dllm.BrokenLogitsError) as failure:
            dllm.generate(model, [[1, 2, 3]], verifier=verifier, **options)
        kept.append(failure.value.partial)
    assert kept[0].sequences == kept[1].sequences
    assert kept[0].metrics.rows[0].raw_tokens == 5  # in the last step one of two


def test_more_than_one_token_a_step_may_join_two_drafts() -> None:
    """A step that commits two tokens lands on a draft two ahead, which is as good."""
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    variants = torch.tensor([[[1, 0, 0], [1, 2, 0], [1, 2, 3]], [[4, 5, 6], [4, 5, 6], [0, 0, 0]]])
    match, found = next_match(tokens, variants, torch.tensor([0, 1]))
    assert match[0] == 2
    assert found.tolist() == [True, False]  # only later ones count


def test_limits_of_drafts_follow_each_row() -> None:
    verifier: Any = verifiers.registry.create("ssd:7,adaptive=true")
    start = torch.zeros(5, 3, dtype=torch.int64)
    drafts = no_drafts(start, verifier.num_variants, verifier.adaptive)
    assert drafts.limit.tolist() == [2] * 5
    drafts.limit = torch.tensor([8, 8, 2, 4, 8])
    drafts.count = torch.tensor([8, 8, 2, 2, 1])
    drafts.note(torch.ones(5, dtype=torch.bool), torch.tensor([1, 3, 2, 2, 1]))
    assert drafts.limit.tolist() == [2, 4, 4, 4, 8]  # the last one had nothing to verify
    nobody, steps = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.int64)
    drafts.note(nobody, steps)
    assert drafts.limit.tolist() == [2, 4, 4, 4, 8]
    assert drafts.passes.tolist() == [1] * 5


def test_adapting_costs_fewer_rows() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(4)
    options = {**SLOTS, "scheduler": "fixed_quota", "block_length": 16}
    _, fixed = check_unchanged(model, prompts, {**options, "verifier": "ssd:8"})
    _, adaptive = check_unchanged(model, prompts, {**options, "verifier": "ssd:8,adaptive=true"})
    assert cost(adaptive) < 0.7 * cost(fixed)


def cost(out: Any) -> int:
    return sum(row.row_forwards for row in out.metrics.rows)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("temperature", "cache", "verifier"),
    crossed(
        (0.0, 0.6), ("none", "prefix", "dual", "block_causal"), ("ssd", "freedave:7,adaptive=true")
    ),
)
def test_a_row_does_not_depend_on_its_batch(cache: str, verifier: str, temperature: float) -> None:
    model, prompts = model_of("sdar" if cache == "block_causal" else "llada_gqa"), random_prompts(4)
    options = {**SLOTS, "cache": cache, "verifier": verifier, "temperature": temperature}
    options |= {"scheduler": "threshold:0.7", "block_length": 8, "eos_token_id": ENDS}
    order = [2, 0, 3, 1]
    alone = [dllm.generate(model, [p], **{**options, "seed": [i]}) for i, p in enumerate(prompts)]
    together = dllm.generate(model, [prompts[i] for i in order], **{**options, "seed": order})
    for place, row in enumerate(order):
        assert together.sequences[place] == alone[row].sequences[0]
        assert together.metrics.rows[place] == alone[row].metrics.rows[0]
    assert len({row.accepted for row in together.metrics.rows}) > 1


def test_sampled_tokens_are_those_of_the_base() -> None:
    """With the noise of the step in which the base draws, not of the pass that verifies."""
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    options = {**SLOTS, "scheduler": "fixed_quota", "temperature": 0.5, "verifier": "ssd:6"}
    found = set()
    for seed in range(3):
        base, fast = check_unchanged(model, prompts, {**options, "seed": seed})
        found.add(base.sequences)
        assert fast.metrics.num_forwards < base.metrics.num_forwards
    assert len(found) == 3


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_copies_of_the_store_are_current(cache: str) -> None:
    model: Any = Poisoned(golden_model("llada_gqa"))
    for verifier in ("ssd:3", "ssd:7,adaptive=true"):  # 8 divides into passes of 2 and 4
        options = {**SLOTS, "cache": cache, "verifier": verifier, "block_length": 8}
        check_unchanged(model, random_prompts(3), {**options, "scheduler": "fixed_quota"})


def test_prompt_memory_serves_verified_runs() -> None:
    model, memory = family_model("sdar"), dllm.PromptMemory()
    prompt = random_prompts(1, low=30, high=31)[0]
    options = {**SLOTS, "scheduler": "fixed_quota", "cache": "block_causal", "block_length": 8}
    for longer in (prompt, [*prompt, 1, 2, 3], [*prompt, 1, 2, 3, 4, 5]):
        base = dllm.generate(model, [longer], **options)
        fast = dllm.generate(model, [longer], memory=memory, verifier="ssd:3", **options)
        assert fast.sequences == base.sequences
        assert fast.metrics.num_forwards < base.metrics.num_forwards
    assert memory.reused[0] >= 24


class Imitation(VerifiedPasses):
    """Fills in the whole draft, runs that alone, and keeps the tokens that stay the same."""

    def take(self, canvas: Canvas, window: Window, plan: StepPlan, logits: Tensor) -> StepEvent:
        drafts, rows = canvas.drafts, canvas.layout.num_rows
        assert drafts is not None
        logits = logits.unflatten(0, (rows, -1))[:, -1]
        last = drafts.variants(canvas.tokens, drafts.most)[:, -1].gather(1, window.columns)
        again = self.plain.step.propose(canvas, plan, logits).token
        kept = window.masked & (last != canvas.layout.mask_token_id) & (last == again)
        canvas.tokens.scatter_(1, window.columns, torch.where(kept, last, window.tokens))
        canvas.writes += 1
        left = canvas.window(plan, canvas.active)
        event = self.plain.step.take(canvas, left, PassResult(plan, logits))
        drafts.note(window.active, window.active.long())
        self._draft(canvas, plan, logits, self._ready_rows(canvas, plan) & window.active)
        return event

    def _ready_rows(self, canvas: Canvas, plan: StepPlan) -> Tensor:
        end_rows(canvas, self.at_eos)
        return canvas.active


@pytest.mark.parametrize("name", some(MODELS, every=3))
def test_an_unsafe_imitation_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**SLOTS, "scheduler": "fixed_quota", "block_length": 16, "at_eos": "ignore"}
    options |= {"verifier": "ssd:3"}
    check_unchanged(golden_model(name), random_prompts(2), options)
    monkeypatch.setattr(VerifiedPasses, "take", Imitation.take)
    monkeypatch.setattr(VerifiedPasses, "_ready_rows", Imitation._ready_rows, raising=False)
    steady: Any = Deaf(golden_model(name))
    first, other = (
        dllm.generate(steady, random_prompts(2), **{**options, "verifier": v})
        for v in (None, "ssd:3")
    )
    assert first.sequences == other.sequences, "it fails of itself, not by what it leaves out"
    with pytest.raises(AssertionError, match="At index 0 diff"):
        check_unchanged(golden_model(name), random_prompts(2), options)


def test_the_report_says_where_an_imitation_leaves_the_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    given: dict[str, Any] = {**SLOTS, "scheduler": "fixed_quota", "block_length": 16}
    options = resolve({}, None, {**given, "verifier": "ssd:3", "at_eos": "ignore"})
    trial = Trial(model, prompts, options, batch_size=2)
    same = summed(list(trial.parts()))
    assert (same.divergences, same.same_rows, same.num_prompts) == ((), 3, 3)
    assert same.same_tokens == same.num_tokens == 3 * 16
    assert same.verified.forwards < same.base.forwards == 2 * 16
    assert same.base.row_forwards == 3 * 16 < same.verified.row_forwards
    assert same.steps_per_forward == 3 * 16 / sum(same.accepted)
    monkeypatch.setattr(VerifiedPasses, "take", Imitation.take)
    monkeypatch.setattr(VerifiedPasses, "_ready_rows", Imitation._ready_rows, raising=False)
    wrong = summed(list(trial.parts()))
    assert [one.prompt for one in wrong.divergences] == [0, 1, 2]
    assert wrong.same_tokens < wrong.num_tokens
    base = dllm.generate(model, prompts, replace(options, verifier=None, seed=[5, 6, 7]))
    checked = 0
    for one in wrong.divergences:
        commits = dict(base.trace.commits(one.prompt)[one.step])
        column = len(prompts[one.prompt]) + one.place
        assert base.sequences[one.prompt][column] == one.token
        assert 0 < one.step < 16
        assert 0 <= one.margin <= 1
        if column in commits:  # of its probability p, so that the next one has 1 - p at most
            sure = float(base.trace.confidence[one.prompt, column])
            assert 2 * sure - 1 - 1e-6 <= one.margin < sure
            checked += 1
    assert checked


@pytest.mark.parametrize(
    ("scheduler", "cache"),
    crossed(("fixed_quota", "threshold:0.7", "factor:1.0"), ("none", "prefix", "dual")),
)
def test_one_host_transfer_a_step(
    scheduler: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 32,
        "block_length": 8,
        "verifier": "ssd:4,adaptive=true",
    }
    running = dllm.stream(
        golden_model("llada_gqa"), random_prompts(4), scheduler=scheduler, cache=cache, **options
    )
    events = iter(running)
    next(events)  # tables are built once
    assert transfers_of(itertools.islice(events, 4), monkeypatch) == [1] * 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheduler": "klass"}, "scheduler 'klass': it carries state"),
        ({"scheduler": "slowfast"}, "scheduler 'slowfast': it carries state"),
        ({"scheduler": "rcr"}, "'rcr': it revises"),
        ({"scheduler": "token_editing"}, "'token_editing': it revises"),
        ({"scheduler": "wino"}, "'wino': it revises"),
        ({"scheduler": "lopa"}, "'lopa': it compares variants"),
        ({"cache": "dual", "scheduler": "end_of_text"}, "'end_of_text': it cuts rows off"),
        ({"cache": "dkv"}, "refuses cache 'dkv'"),
        ({"cache": "window_diffusion"}, "refuses cache 'window_diffusion'"),
        ({"cache": "dual:refresh_every=3"}, "refuses refresh_every=3 of cache 'dual'"),
        ({"noise": object()}, "noise=object"),
        (
            {"verifier": "ssd:2,margin_guard=0.1", "at_eos": "truncate", "cache": "dual"},
            "at_eos='truncate' goes by passes",
        ),
        ({"verifier": "ssd:2,margin_guard=1"}, "margin_guard=1 must be in"),
        ({"verifier": "ssd:2,margin_guard=0.1", "temperature": 1.0}, "margin_guard=0.1 compares"),
        ({"verifier": "ssd:2,execution=trees"}, "execution='trees' must be"),
        ({"verifier": "sdd"}, "did you mean 'ssd'"),
        ({"verifier": "ssd:draft_length=-1"}, "draft_length=-1 must be at least 0"),
        ({"verifier": "freedave:0"}, "draft_steps=0 must be at least 1"),
    ],
)
def test_what_may_change_outputs_is_refused(options: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"verifier": "ssd", "max_new_tokens": 8, **options}
    with pytest.raises(ValueError, match=said):
        dllm.generate(golden_model("llada_gqa"), [[1, 2]], **given)


def test_a_cache_that_looks_at_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="refuses cache 'sub_block'"):
        dllm.generate(family_model("sdar"), [[1]], cache="sub_block", verifier="ssd")


def test_every_scheduler_is_verified_or_refused_by_name() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(2)
    refused = set()
    for name in dllm.schedulers.registry.names():
        if name in ("learn2pd", "renoise"):
            continue  # needs a filter, and is among those above; refuses all masked models
        options = {**SLOTS, "verifier": "ssd:2", "block_length": 4, "max_new_tokens": 8}
        options = options_of(name, **options)
        scheduler = dllm.schedulers.registry.create(name)
        needs = scheduler.needs(8, 4)
        if scheduler.stateless and not (
            scheduler.can_revise or needs.num_variants > 1 or needs.shadow
        ):
            check_unchanged(model, prompts, options)
            continue
        refused.add(name)
        with pytest.raises(ValueError, match=f"verifier 'ssd' refuses scheduler '{name}': it "):
            dllm.generate(suited(model, name), prompts, **options)
    revising = {"wino", "rcr", "remdm", "token_editing", "dreamon"}
    assert refused >= revising | {"klass", "ete", "lopa", "credit", "slowfast"}
    assert not refused & {"fixed_quota", "threshold", "factor", "localleap", "entropy_bound"}


def test_observers_are_refused() -> None:
    model = golden_model("llada_gqa")
    options = resolve({}, None, {"verifier": "ssd", "max_new_tokens": 8})
    with pytest.raises(ValueError, match="are not observed"):
        dllm.Stream(model, [[1, 2]], options, observer=lambda done: None)


@pytest.mark.few(1)
@pytest.mark.parametrize("style", ["--json", "--cache=dual"])
def test_the_command(style: str) -> None:
    command = ["verify", "-s", "fixed_quota", "-v", "ssd:3", "--limit", "2", style]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    if style == "--json":
        record = json.loads(done.stdout)
        assert record["verified"]["forwards"] < record["base"]["forwards"]
        assert (record["same_rows"], record["divergences"]) == (2, [])
    else:
        assert "rows without any difference: 2 of 2" in done.stdout


@pytest.mark.few(2)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "block_causal"])
def test_one_canvas_after_the_other_rounds_as_the_base_does(cache: str) -> None:
    """Each pass has the base's shapes, so that even the last bit of a float32 is the same.

    Of one row: those of a batch end at other passes than in the base, which changes the shapes.
    """
    model = model_of("sdar" if cache == "block_causal" else "llada_gqa")
    model = dllm.HostedModel(model.name, copy.deepcopy(model.network).float(), model.spec)
    options = {**SLOTS, "scheduler": "fixed_quota", "cache": cache, "block_length": 8}
    options |= {"statistics_dtype": torch.float32}
    prompts = random_prompts(1)
    base = dllm.generate(model, prompts, **options)
    fast = dllm.generate(model, prompts, verifier="ssd:3,execution=sequential", **options)
    assert fast.sequences == base.sequences
    assert fast.metrics.num_forwards < base.metrics.num_forwards
    assert torch.equal(fast.trace.confidence.nan_to_num(-1), base.trace.confidence.nan_to_num(-1))


@pytest.mark.few(2)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "block_causal"])
def test_ways_to_run_canvases_differ_in_what_they_store_alone(cache: str) -> None:
    model = model_of("sdar" if cache == "block_causal" else "llada_gqa")
    options = {**SLOTS, "scheduler": "fixed_quota", "cache": cache, "block_length": 16}
    found = {
        way: dllm.generate(model, [[1, 2, 3]], verifier=f"ssd:3,execution={way}", **options).metrics
        for way in ("batch", "tree", "sequential")
    }
    assert found["tree"].rows == found["sequential"].rows == found["batch"].rows
    assert found["tree"].num_forwards == found["sequential"].num_forwards
    assert found["tree"].fed == found["sequential"].fed == found["batch"].fed
    assert found["tree"].tokens_fed == found["sequential"].tokens_fed
    assert found["batch"].store_bytes >= 3.9 * found["tree"].store_bytes
    assert (found["tree"].store_bytes > 0) == (cache != "none")
