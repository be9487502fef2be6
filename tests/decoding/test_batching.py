"""Prompts that wait enter where rows are finished, and every row is what it would be alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import dllm
from dllm.schedulers import Decision, Scheduler, Setup, View
from dllm.state.candidates import Candidates, rank
from dllm.state.carried import State
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.laws import (
    COUNTED,
    SCHEDULERS,
    SLOTS,
    caches_on,
    grows,
    is_first,
    marks_in,
    options_of,
    pairs_on,
    partner,
    suited,
    text_of,
)
from tests.support.marks import crossed
from tests.support.models import family_model, golden_model, random_prompts

ENDS = [6, 9, 13, 29, 72, 113]  # common enough that rows end at different steps
BLOCK_CAUSAL = ("block_causal", "block_causal:8", "sub_block:4", "sub_block:4,prefill_chunk=16")


def assert_same(model: Any, prompts: Any, batch_size: int, **options: Any) -> Any:
    """Decodes with waiting prompts and without, and compares all that a row has."""
    options = {**SLOTS, "eos_token_id": ENDS, "seed": 5, **options}
    if "scheduler" in options:
        options = options_of(**options)
    together = dllm.generate(model, prompts, **options)
    waiting = dllm.generate(model, prompts, batch_size=batch_size, **options)
    assert waiting.sequences == together.sequences
    assert waiting.metrics.rows == together.metrics.rows
    for name, value in vars(together.trace).items():
        ours = getattr(waiting.trace, name)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(ours, value, rtol=0, atol=1e-4, equal_nan=True)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(ours, value), name
        else:
            assert ours == value, name
    return waiting


def pairs() -> list[Any]:
    """Returns schedulers with caches: each once with a typical partner, the others slow tests."""
    found = []
    for scheduler, cache in pairs_on("llada_gqa"):
        typical = ("prefix", "none")[SCHEDULERS.index(scheduler) % 2]
        typical = "none" if grows(scheduler) else typical
        fast = cache == typical and is_first(scheduler)
        fast = fast or (is_first(cache) and scheduler == partner("llada_gqa", cache))
        marks = () if fast else marks_in("waiting rows", "llada_gqa", scheduler, cache)
        name = f"{text_of(scheduler)}-{text_of(cache)}"
        found.append(pytest.param(scheduler, cache, marks=marks, id=name))
    return found


@pytest.mark.parametrize(("scheduler", "cache"), pairs())
def test_a_row_is_what_it_would_be_alone(scheduler: Any, cache: Any) -> None:
    model = suited(golden_model("llada_gqa", "float32"), scheduler)
    assert_same(model, random_prompts(4, seed=2), 2, scheduler=scheduler, cache=cache)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "cache", ["none", "prefix", "dual", "dkv:3", "window_diffusion:4,window=9"]
)
def test_shifted_models(cache: str) -> None:
    model = golden_model("dream_gqa", "float32")
    for size in (1, 2):
        assert_same(model, random_prompts(5), size, scheduler="threshold:0.4", cache=cache)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "cache", "scheduler"),
    crossed(
        ("sdar", "fast_dllm_v2"),
        BLOCK_CAUSAL,
        ("threshold:0.3", "fixed_quota:order=random", "token_editing:0.3,post_steps=3"),
    ),
)
def test_block_causal_models(name: str, cache: str, scheduler: str) -> None:
    prompts = random_prompts(6, seed=1, low=2, high=50)
    options = {"scheduler": scheduler, "cache": cache, "block_length": None}
    assert_same(family_model(name), prompts, 2, **options)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("cache", "verifier", "temperature"),
    crossed(
        ("dual", "none", "prefix"),
        ("ssd:3", "freedave:7,adaptive=true", "ssd:3,execution=tree"),
        (0.0, 0.6),
    ),
)
def test_a_verifier_begins_anew_with_each_row(
    cache: str, verifier: str, temperature: float
) -> None:
    options = {"scheduler": "threshold:0.7", "cache": cache, "temperature": temperature}
    model, prompts = golden_model("llada_gqa"), random_prompts(5)
    out = assert_same(model, prompts, 2, verifier=verifier, **options)
    assert len({row.accepted for row in out.metrics.rows}) > 1


def test_a_verifier_of_a_block_causal_model() -> None:
    options = {"scheduler": "threshold:0.7", "cache": "block_causal", "verifier": "ssd:3"}
    assert_same(family_model("sdar"), random_prompts(6), 2, block_length=8, **options)


@pytest.mark.few(5)
@pytest.mark.parametrize(
    "cache",
    ["dual", *(pytest.param(c, marks=pytest.mark.slow) for c in ("none", "window_diffusion:4"))],
)
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8},
        {"temperature": 0.8, "seed": [9, 8, 7, 6, 5, 4, 3]},
        {"guidance_scale": 0.7},
        {"fixed": {0: 5, 13: 6, 31: 7}},
        *({"at_eos": rule} for rule in ("ignore", "skip", "block", "truncate")),
        {"blocks_from": "zero", "max_new_tokens": 30},
    ],
    ids=str,
)
def test_what_else_a_row_depends_on(cache: str, options: dict[str, Any]) -> None:
    model = golden_model("llada_gqa", "float64")
    assert_same(model, random_prompts(7), 3, scheduler="threshold:0.5", cache=cache, **options)


@dataclass(frozen=True)
class Hastening(Scheduler):
    """Commits one column more in each step that it remembers, over all blocks of a row."""

    source = "this test"

    def start(self, setup: Setup) -> State:
        return {"steps": torch.zeros(setup.num_rows, dtype=torch.int64, device=setup.device)}

    def select(self, candidates: Candidates, view: View) -> Decision:
        masked = view.masked & view.block
        commit = rank(candidates.confidence, masked) <= view.state["steps"][:, None]
        return Decision(commit & masked, state={"steps": view.state["steps"] + 1})


@pytest.mark.few(2)
@pytest.mark.parametrize("cache", ["none", "dual", "dkv:3"])
def test_the_state_of_a_method_begins_anew(cache: str) -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(6)
    out = assert_same(model, prompts, 2, scheduler=Hastening(), cache=cache, at_eos="ignore")
    assert out.trace.commit_step.max() == 8  # blocks of 8 as 1 + 2 + 3 + 2, 5 + 3, 7 + 1 and 8


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["sdar", "fast_dllm_v2"])
def test_a_long_prompt_that_enters_is_read_in_parts(name: str) -> None:
    lengths = (5, 9, 70, 12, 61)
    prompts = [random_prompts(1, seed=n, low=n, high=n + 1)[0] for n in lengths]
    options = {"scheduler": "threshold:0.3", "cache": "block_causal:16", "block_length": 8}
    out = assert_same(family_model(name), prompts, 2, **options)
    assert max(out.metrics.fed) <= 16 + 2 * 8
    assert out.metrics.forwards["commit"] >= 6
    whole = assert_same(family_model(name), prompts, 2, **{**options, "cache": "block_causal"})
    assert max(whole.metrics.fed) > 64


def test_gaps_of_different_texts() -> None:
    parts = [(n, [1 + n, 2], 4 + n, [3 + n]) for n in (3, 9, 2, 5)]
    mask = golden_model("llada_gqa").spec.mask_token_id
    prompts = [[4, *[mask] * a, *b, *[mask] * c, *d] for a, b, c, d in parts]
    options = {"infill": True, "block_length": 4, "scheduler": "threshold:0.5"}
    for cache in ("none", "dual"):
        assert_same(golden_model("llada_gqa"), prompts, 2, cache=cache, **options)


def test_rows_without_open_slots_never_enter() -> None:
    model = golden_model("llada_gqa")
    mask, full = model.spec.mask_token_id, [1, 2, 3]
    options: dict[str, Any] = {**SLOTS, "infill": True, "block_length": 2}
    gap = [5, mask, mask, 6]
    alone = dllm.generate(model, gap, **options)
    fixed = dict.fromkeys(range(32), 7)
    out = dllm.generate(model, [full, [4], [5, 6]], batch_size=1, fixed=fixed, **SLOTS)
    assert out.metrics.num_forwards == 0
    assert [sequence[-32:] for sequence in out.sequences] == [(7,) * 32] * 3
    waiting = dllm.generate(model, [gap] * 3, batch_size=1, **options)
    assert waiting.metrics.num_forwards == 3 * alone.metrics.num_forwards


class Poisoned:
    """A model whose stored keys of a row are spoilt as soon as it is finished."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model = model
        self.store: KVStore | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def new_store(self, num_rows: int, num_columns: int) -> KVStore:
        self.store = self.model.new_store(num_rows, num_columns)
        return self.store

    def forward(self, tokens: torch.Tensor, plan: StepPlan, store: KVStore | None) -> torch.Tensor:
        return self.model.forward(tokens, plan, store)

    @torch.inference_mode()
    def spoil(self, place: int, num_places: int) -> None:
        assert self.store is not None
        for held in (*self.store.keys, *self.store.values):
            rows = held[:-1].unflatten(0, (self.store.shape.num_rows, -1))
            each = len(rows) // num_places
            rows[place * each : (place + 1) * each].normal_(std=30)
        for states in self.store.features.values():
            each = len(states) // num_places
            states[place * each : (place + 1) * each].normal_(std=30)


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("name", "cache"),
    [
        *(
            pytest.param("llada_gqa", cache, marks=() if is_first(cache) else pytest.mark.slow)
            for cache in caches_on("llada_gqa")
            if dllm.cache.registry.create(cache).uses_store
        ),
        *crossed(("sdar", "fast_dllm_v2"), BLOCK_CAUSAL),
        ("wedlm", "streaming"),
    ],
)
def test_what_was_stored_for_the_row_before_is_never_read(name: str, cache: str) -> None:
    model = golden_model(name) if name == "llada_gqa" else family_model(name)
    poisoned: Any = Poisoned(model)
    options: dict[str, Any] = {**SLOTS, "eos_token_id": ENDS, "cache": cache}
    options |= {"scheduler": "threshold:0.4", "block_length": 8}
    prompts = random_prompts(8, seed=3)
    clean = dllm.generate(model, prompts, **options)
    running = dllm.stream(poisoned, prompts, batch_size=3, **options)
    replaced = 0
    for event in running:
        for prompt in event.finished:
            poisoned.spoil(event.prompts.index(prompt), 3)
            replaced += 1
    assert replaced == 8
    assert running.output.sequences == clean.sequences


def test_events_say_whose_row_a_place_holds() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(6, seed=3)
    options: dict[str, Any] = {**SLOTS, "eos_token_id": ENDS, "scheduler": "threshold:0.4"}
    running = dllm.stream(model, prompts, batch_size=2, **options)
    ended: list[int] = []
    seen: set[int] = set()
    for event in running:
        assert event.columns.shape[0] == len(event.prompts) == 2
        for place, prompt in enumerate(event.prompts):
            assert int(running.canvas.prompt_length[place]) == len(prompts[prompt])
        for prompt in event.finished:
            done = running.output
            assert done.metrics.rows[prompt].finish_reason != "interrupted"
        ended += event.finished
        seen |= set(event.prompts)
    assert sorted(ended) == list(range(6))
    assert seen == set(range(6))
    together = dllm.stream(model, prompts, **options)
    assert {event.prompts for event in together} == {tuple(range(6))}


def test_the_batch_stays_full() -> None:
    """Without a cache a place is never empty while a prompt waits."""
    model, prompts = golden_model("llada_gqa"), random_prompts(9, seed=3)
    options: dict[str, Any] = {**SLOTS, "eos_token_id": ENDS, "scheduler": "threshold:0.4"}
    out = dllm.generate(model, prompts, batch_size=3, **options)
    steps = [row.forwards for row in out.metrics.rows]
    ends = [0, 0, 0]  # each prompt goes to the place that is free first
    for count in steps:
        ends[ends.index(min(ends))] += count
    assert out.metrics.num_forwards == max(ends)
    assert out.metrics.rows_fed == 3 * max(ends)


def test_lockstep_waits_for_the_next_block() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(6, seed=3)
    options: dict[str, Any] = {**SLOTS, "eos_token_id": ENDS, "scheduler": "threshold:0.4"}
    running = dllm.stream(model, prompts, batch_size=2, cache="dual", **options)
    before: tuple[int, ...] = (0, 1)
    for event in running:
        if event.prompts != before:
            assert event.kind == "refresh"
        before = event.prompts


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("cache", "scheduler"),
    crossed(
        ("none", "dual", "dkv:3", "window_diffusion:4,window=9"),
        ("threshold:0.4", "rcr", "ete:0.5"),
    ),
)
def test_one_transfer_a_step_also_when_rows_enter(
    cache: str, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**SLOTS, "eos_token_id": ENDS, "cache": cache, "seed": 1}
    running = dllm.stream(
        golden_model("llada_gqa"),
        random_prompts(8, seed=3),
        batch_size=2,
        scheduler=scheduler,
        **options,
    )
    transfers, entered = [0], 0

    def counted(original: Any) -> Any:
        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            transfers[0] += 1
            return original(self, *args, **kwargs)

        return call

    events = iter(running)
    last = next(events)
    for name in COUNTED:
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    while True:
        before = transfers[0]
        event = next(events, None)
        if event is None:
            break
        assert transfers[0] - before == 1
        entered += event.prompts != last.prompts
        last = event
    assert entered


def test_what_is_finished_is_kept_when_a_run_breaks() -> None:
    class Failing(Poisoned):
        calls = 0

        def forward(self, tokens: Any, plan: StepPlan, store: KVStore | None) -> torch.Tensor:
            self.calls += 1
            logits = self.model.forward(tokens, plan, store)
            if self.calls == 14:
                self.stop(logits)
            return logits

        def stop(self, logits: torch.Tensor) -> None:
            raise self.error

    options: dict[str, Any] = {**SLOTS, "eos_token_id": ENDS, "scheduler": "threshold:0.4"}
    model, prompts = golden_model("llada_gqa"), random_prompts(9, seed=3)
    whole = dllm.generate(model, prompts, **options)
    for error, kind in (
        (KeyboardInterrupt(), dllm.GenerationInterrupted),
        (torch.OutOfMemoryError("CUDA out of memory"), dllm.NotEnoughMemoryError),
        (None, dllm.BrokenLogitsError),
    ):
        failing: Any = Failing(model)
        failing.error = error
        if error is None:
            failing.stop = lambda logits: logits[1].fill_(torch.nan)
        with pytest.raises(kind) as caught:
            dllm.generate(failing, prompts, batch_size=2, **options)
        failed: Any = caught.value
        partial = failed.partial
        done = [n for n, r in enumerate(partial.metrics.rows) if r.finish_reason != "interrupted"]
        assert 2 <= len(done) < 9
        for row in done:
            assert partial.sequences[row] == whole.sequences[row]
            assert partial.metrics.rows[row] == whole.metrics.rows[row]
        assert partial.metrics.rows[8].forwards == 0
        assert len(partial.sequences[8]) == len(prompts[8]) + 32


def test_broken_rows_are_named_by_prompt() -> None:
    class Broken(Poisoned):
        def forward(self, tokens: Any, plan: StepPlan, store: KVStore | None) -> torch.Tensor:
            logits = self.model.forward(tokens, plan, store)
            bad = (tokens[:, 0] == 101)[:, None, None]
            return torch.where(bad, torch.nan, logits)

    broken: Any = Broken(golden_model("llada_gqa"))
    with pytest.raises(dllm.BrokenLogitsError, match=r"row\(s\) \[3\]"):
        dllm.generate(broken, [[5], [6], [7], [101], [8]], batch_size=2, **SLOTS)


def test_memory_is_that_of_the_rows_in_the_canvas() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(9)
    options: dict[str, Any] = {**SLOTS, "cache": "dual"}
    few = dllm.generate(model, prompts, batch_size=2, **options).metrics.store_bytes
    assert few == pytest.approx(
        2 / 9 * dllm.generate(model, prompts, **options).metrics.store_bytes, rel=0.02
    )


def test_a_batch_that_holds_all_prompts_is_as_without() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    for size in (3, 50):
        running = dllm.stream(model, prompts, batch_size=size, **SLOTS)
        assert running.batch is None
        assert running.canvas.layout.num_rows == 3


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "4"])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_size=.* must be (a whole number of )?at least 1"):
        dllm.generate(golden_model("llada_gqa"), [[1], [2]], batch_size=size, **SLOTS)


def test_what_does_not_go_with_waiting_prompts() -> None:
    model, prompts = family_model("sdar"), [[1], [2], [3]]
    memory = dllm.PromptMemory()
    with pytest.raises(ValueError, match=r"batch_size=2 has 1 prompt.* memory"):
        dllm.generate(
            model, prompts, batch_size=2, memory=memory, cache="block_causal", max_new_tokens=8
        )

    class Replayed:
        def tokens(self, columns: Any, step: Any, vocab_size: int) -> Any:
            raise AssertionError

        columns = tokens

    replayed: Any = Replayed()
    with pytest.raises(ValueError, match="noise=Replayed does not tell prompts apart"):
        dllm.generate(model, prompts, batch_size=2, noise=replayed, max_new_tokens=8)


def test_names_of_the_literature() -> None:
    settings = dllm.Settings(batch_size=3)
    for name in ("batch_size", "max_num_seqs", "max_running_requests"):
        assert dllm.settings.resolve({}, None, {name: 3}) == settings


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    file = tmp_path / "gain.json"
    options = ["--limit", "6", "--batch-size", "2", "--repeats", "1", "--output", str(file)]
    command = [sys.executable, "-m", "benchmarks.continuous", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    methods = json.loads(file.read_text())["methods"]
    assert len(methods) == 8
    assert methods[0]["continuous"]["row_forwards"] == methods[0]["batches"]["row_forwards"]
    assert methods[0]["continuous_ratio"]["num_forwards"] < 1
    assert all(one["seconds_ratio"] > 0 for one in methods)
