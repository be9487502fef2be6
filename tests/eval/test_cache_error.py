"""The exactness ledger: what it says of exact caches, and that watching changes nothing."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

import dllm
from dllm.cli.main import main
from dllm.decoding.passes import PassRecord
from dllm.eval.compare import cache_error as module
from dllm.eval.compare.cache_error import (
    Entries,
    ErrorRecorder,
    divergence,
    logit_error,
    observe,
    rank_correlation,
    same_first,
)
from dllm.eval.compare.cache_error import ages as ages_of
from dllm.eval.compare.cache_error_run import CacheErrorRun, cache_error, summarise
from dllm.settings import Settings
from dllm.state.candidates import Candidates
from dllm.state.noise import CounterNoise
from dllm.state.store import KVStore, StoreShape
from tests.support.marks import crossed
from tests.support.models import golden_model, random_prompts
from tests.support.oracles import hosted

SLOTS: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8}
SCHEDULERS = [
    "fixed_quota",
    "threshold:0.4",
    "fixed_quota:steps=8,order=random",
    "multi_block:0.4,blocks=2",
    "lopa:0.5,branches=3",
    "wino:0.4,threshold_back=0.5",
    "token_editing:0.4,editing_threshold=0.3,post_steps=3",
    "end_of_text:threshold:0.4",
    "klass:0.4,kl_threshold=0.5",
]


def exact(entries: Entries) -> bool:
    """Whether nothing differs at all."""
    same = entries.same_tokens.equal(entries.num_masks) and bool((entries.same_first == 1).all())
    errors = (entries.max_error, entries.mean_error, entries.divergence)
    return len(entries) > 0 and same and not any(bool(error.any()) for error in errors)


def names() -> list[str]:
    """Every cache that any of the golden models allows."""
    model = golden_model("llada_gqa", "float32")
    allowed = CacheErrorRun(model, [[1]], Settings(**SLOTS)).allowed()
    return [name for name, reason in allowed.items() if reason is None]


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("cache", "scheduler"),
    [(cache, "fixed_quota") for cache in names()] + [("dual", s) for s in SCHEDULERS[1:]],
)
def test_watching_changes_nothing(cache: str, scheduler: str) -> None:
    model, prompts = golden_model("llada_gqa", "float32"), random_prompts(3)
    options: dict[str, Any] = {**SLOTS, "cache": cache, "scheduler": scheduler, "seed": 5}
    try:
        alone = dllm.generate(model, prompts, temperature=0.0, **options)
    except ValueError as error:
        pytest.skip(str(error))
    out, entries = observe(model, prompts, temperature=0.0, **options)
    assert out.sequences == alone.sequences
    assert out.trace.commit_step.equal(alone.trace.commit_step)
    assert replace(out.metrics, prefill_seconds=0, decode_seconds=0) == replace(
        alone.metrics, prefill_seconds=0, decode_seconds=0
    )
    assert len(entries) > 0
    assert bool((entries.num_masks > 0).all())


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_watching_draws_no_noise(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = golden_model("dream_gqa"), random_prompts(3)
    options = {**SLOTS, "temperature": 0.8, "top_p": 0.9, "cache": cache}
    alone = dllm.generate(model, prompts, generator=torch.Generator().manual_seed(3), **options)
    out, _ = observe(model, prompts, generator=torch.Generator().manual_seed(3), **options)
    assert out.sequences == alone.sequences

    class Silent(CounterNoise):
        def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
            pytest.fail("proposals are compared without noise")

    monkeypatch.setattr(module, "CounterNoise", Silent)
    observe(model, prompts, seed=1, **options)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "dtype"), crossed(("llada_gqa", "dream_gqa"), ("float32", "float64", "bfloat16"))
)
def test_what_is_exact_shows_exactly_nothing(name: str, dtype: str) -> None:
    model, prompts = golden_model(name, dtype), random_prompts(4)
    wide = {"name": "dual", "vicinity_before": 64, "vicinity_after": 64}
    for cache in ("none", "prefix", "dual", wide):
        block = 8 if cache in ("none", wide) else 1  # blocks of one column are refreshed each step
        options: dict[str, Any] = {"max_new_tokens": 16, "block_length": block, "cache": cache}
        _, entries = observe(model, prompts, scheduler="fixed_quota", **options)
        assert exact(entries), cache
        assert not bool(entries.max_age.any())


@pytest.mark.few(4)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_cache_is_exact_with_every_kind_of_scheduler(scheduler: str) -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    _, entries = observe(model, prompts, scheduler=scheduler, cache="none", **SLOTS)
    if scheduler.startswith("lopa"):  # variants are rows of a larger batch: other rounding
        assert float(entries.max_error.max()) < 1e-9
    else:
        assert exact(entries)


@pytest.mark.parametrize(
    ("name", "cache", "guidance"),
    crossed(("llada_gqa", "dream_gqa"), ("prefix", "dual"), (0.0, 1.5)),
)
def test_only_refreshes_are_exact(name: str, cache: str, guidance: float) -> None:
    model, prompts = golden_model(name), random_prompts(3)
    options: dict[str, Any] = {**SLOTS, "cache": cache, "guidance_scale": guidance}
    out, entries = observe(model, prompts, scheduler="fixed_quota", **options)
    refreshed = entries.step % 8 == 0
    assert out.metrics.forwards["refresh"] == 2
    assert not bool(entries.max_error[refreshed].any())
    assert bool((entries.max_error[~refreshed & (entries.step % 8 > 1)] > 0).all())
    assert entries.max_age.equal((entries.step % 8).double())


def test_age_in_closed_form() -> None:
    """10 prompt tokens and two blocks of 8, all at age 0 when a block begins."""
    model = golden_model("llada_gqa")
    options: dict[str, Any] = {**SLOTS, "scheduler": "fixed_quota", "at_eos": "ignore"}
    for cache in ("prefix", "dual"):
        _, entries = observe(model, [[5] * 10], cache=cache, **options)
        frozen = {"prefix": (10, 18), "dual": (18, 18)}[cache]  # columns that a step leaves alone
        expected = [frozen[step // 8] * (step % 8) / 26 for step in range(16)]
        assert entries.mean_age.tolist() == pytest.approx(expected), cache
        assert entries.step.tolist() == list(range(16))


def test_every_key_that_is_seen_was_written() -> None:
    ages: list[int] = []

    def check(seen: PassRecord) -> None:
        if seen.store is None:
            return
        columns = torch.arange(seen.plan.num_keys)
        visible = (columns < seen.canvas.length[:, None]).expand(3, -1)
        if seen.plan.attention_mask is not None:
            visible = seen.plan.attention_mask.any(1)
        age = seen.store.age(seen.plan.num_keys)
        ages.extend(age[visible].tolist())
        assert int(age[visible].max()) < seen.store.num_passes  # older: never written

    for name in names():
        settings = Settings(**SLOTS, cache=name, scheduler="fixed_quota")
        model = golden_model("llada_gqa")
        for _ in dllm.Stream(model, random_prompts(3), settings, observer=check):
            pass
    assert max(ages) > 0


def test_a_row_does_not_depend_on_its_batch() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    options: dict[str, Any] = {**SLOTS, "cache": "dual", "scheduler": "fixed_quota"}
    _, together = observe(model, prompts, **options)
    for row, prompt in enumerate(prompts):
        _, alone = observe(model, [prompt], **options)
        mine = together.row == row
        for name in ("num_masks", "max_error", "mean_error", "divergence", "rank_correlation"):
            got, expected = getattr(together, name)[mine], getattr(alone, name)
            assert torch.allclose(got, expected, atol=1e-9, equal_nan=True), name


def test_stamps_follow_writes_and_copies() -> None:
    store = KVStore(StoreShape(2, 4, 1, 2), torch.float32, [torch.device("cpu")])
    with pytest.raises(AssertionError):
        store.age(4)
    store.keep_stamps()

    def write(columns: list[list[int]]) -> None:
        store.begin(torch.tensor(columns))

    write([[0, 1, 2, 3], [0, 1, 2, 3]])
    write([[1, 2], [0, -1]])
    assert store.age(4).tolist() == [[1, 0, 0, 1], [0, 1, 1, 1]]
    write([[3]])  # of every second row
    assert store.age(3).tolist() == [[2, 1, 1], [1, 2, 2]]
    store.copy_rows(torch.tensor([0, 0]))
    assert store.age(4).tolist() == [[2, 1, 1, 0], [2, 1, 1, 0]]


def test_normal_runs_keep_no_stamps() -> None:
    model, made = golden_model("llada_gqa"), []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def new_store(self, *size: int) -> KVStore:
            made.append(model.new_store(*size))
            return made[-1]

    watched: Any = Watched()
    dllm.generate(watched, [[5] * 8], cache="dual", **SLOTS)
    assert made[0].stamp is None
    assert made[0].num_passes == 0


def test_differences_worked_by_hand() -> None:
    exact = torch.tensor([[[0.0, 1.0, -torch.inf], [2.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]] * 2])
    given = torch.tensor([[[0.5, 1.0, -torch.inf], [2.0, 9.0, 0.0]], [[1.0, 1.0, 4.0]] * 2])
    chosen = torch.tensor([[True, False], [True, True]])
    largest, mean = logit_error(given, exact, chosen)
    assert largest.tolist() == [0.5, 3.0]
    assert mean.tolist() == pytest.approx([0.5 / 3, 1.0])
    none = torch.zeros(2, 2, dtype=torch.bool)
    assert [t.tolist() for t in logit_error(given, exact, none)] == [[0, 0], [0, 0]]
    # KL of a uniform p over three and q = (1, 1, e^3) / (2 + e^3)
    total = 2 + math.exp(3)
    expected = math.log(1 / 3) - (2 * math.log(1 / total) + math.log(math.exp(3) / total)) / 3
    assert divergence(given, exact, chosen)[1].item() == pytest.approx(expected)
    assert not divergence(exact, exact, chosen).any()


def candidates(confidence: list[list[float]]) -> Candidates:
    """Two tokens, of which the first has the confidence given."""
    p = torch.tensor(confidence, dtype=torch.float64)
    logits = torch.stack([p, 1 - p], -1).log()
    return Candidates(logits, torch.zeros(p.shape, dtype=torch.int64))


def test_the_most_confident_column() -> None:
    ours = candidates([[0.9, 0.8, 0.7], [0.6, 0.6, 0.5], [0.9, 0.8, 0.7]])
    theirs = candidates([[0.8, 0.7, 0.75], [0.5, 0.7, 0.6], [0.9, 0.8, 0.7]])
    chosen = torch.tensor([[False, True, True], [True, True, True], [False] * 3])
    found = same_first(ours, theirs, chosen)
    assert found[:2].tolist() == [0, 0]  # 1 against 2; 0 (the lower of a tie) against 1
    assert found[2].isnan()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), min_size=1, max_size=12
    )
)
def test_rank_correlation_is_spearmans(rows: list[tuple[int, int, bool]]) -> None:
    one, other = (torch.tensor([[row[i] / 7 for row in rows]]) for i in (0, 1))
    chosen = torch.tensor([[row[2] for row in rows]])
    found = rank_correlation(one, other, chosen)[0]
    a, b = one[chosen].tolist(), other[chosen].tolist()
    if len(set(a)) < 2 or len(set(b)) < 2:
        assert found.isnan()
    else:
        assert found.item() == pytest.approx(spearmanr(a, b).statistic)


def test_an_audit_of_a_list_of_prompts(tiny: dllm.HostedModel) -> None:
    prompts = ["tom has 53 pens. tom loses 3. how many pens does tom have?", "copy: tom, ann."]
    settings = Settings(max_new_tokens=32, block_length=16, scheduler="threshold")
    none, dual = (cache_error(tiny, prompts, settings, cache) for cache in ("none", "dual"))
    assert (none.max_error, none.same_output, none.same_rows, none.flops_saved) == (0, 1, 1, 0)
    assert none.store_bytes == 0 == none.max_age
    assert dual.max_error > 0
    assert dual.flops is not None
    assert none.flops is not None
    assert dual.flops_saved == pytest.approx(1 - dual.flops / none.flops)
    assert 0 < 1 - dual.flops / none.flops < 1
    assert dual.tokens_fed < none.tokens_fed
    assert dual.store_bytes > 0
    assert dual.cache == "dual"
    assert json.loads(json.dumps(asdict(dual)))["correct"] is None


def test_prompts_draw_the_same_noise_in_any_batch(tiny: dllm.HostedModel) -> None:
    prompts = ["copy: tom, ann.", "reverse: tom, ann.", "copy: ann, tom."]
    settings = Settings(max_new_tokens=16, temperature=1.5, scheduler="fixed_quota", seed=4)
    texts = []
    for size in (1, 2, 3):
        asked = CacheErrorRun(tiny, prompts, settings, size)
        texts.append([text for out in asked.reference() for text in out.texts or ()])
    assert texts[0] == texts[1] == texts[2]
    assert cache_error(tiny, prompts, settings, "none", 2).same_rows == 1


def test_answers_are_compared_up_to_their_end(tiny: dllm.HostedModel) -> None:
    settings = Settings(max_new_tokens=16, scheduler="fixed_quota", block_length=16)
    asked = CacheErrorRun(tiny, ["copy: tom, ann."], settings)
    (reference,) = asked.reference()
    (part,) = asked.observed("none", [reference])
    end = tiny.spec.eos_token_ids[0]
    prompt, tokens = reference.metrics.rows[0].prompt_tokens, list(reference.sequences[0])
    stop = tokens.index(end, prompt)
    changed = [*tokens]
    changed[prompt] += 1  # one token of the answer
    changed[stop + 1 :] = [5] * (len(tokens) - stop - 1)  # what follows the end does not count
    other = replace(reference, sequences=(tuple(changed),))
    found = summarise(settings, [replace(part, reference=other)])
    length = stop - prompt + 1
    assert found.same_output == pytest.approx((length - 1) / length)
    assert found.same_rows == 0


def entries_of(**given: list[float]) -> Entries:
    """Returns entries that agree in all that is not given."""
    length = len(next(iter(given.values())))
    usual = {"num_masks": 1, "same_tokens": 1, "same_first": 1, "rank_correlation": 1}
    names = [field.name for field in fields(Entries)]
    filled = {name: given.get(name, [usual.get(name, 0)] * length) for name in names}
    return Entries(
        **{name: torch.tensor(value, dtype=torch.float64) for name, value in filled.items()}
    )


def test_what_batches_come_to_worked_by_hand(tiny: dllm.HostedModel) -> None:
    prompts = ["copy: tom, ann.", "reverse: tom, ann."]
    settings = Settings(max_new_tokens=16, scheduler="fixed_quota", cache="dual")
    asked = CacheErrorRun(tiny, prompts, settings, 1)
    one, two = asked.observed("none", list(asked.reference()))
    one = replace(one, entries=entries_of(num_masks=[4, 1], mean_error=[1, 6], same_tokens=[3, 1]))
    numbers = entries_of(
        num_masks=[5],
        mean_error=[2],
        divergence=[0.5],
        same_tokens=[1],
        same_first=[0],
        rank_correlation=[torch.nan],
        max_error=[7],
        mean_age=[3],
        max_age=[9],
    )
    found = summarise(settings, [one, replace(two, entries=numbers)])
    assert (found.prompts, found.passes) == (2, 3)
    assert found.mean_error == pytest.approx((4 * 1 + 1 * 6 + 5 * 2) / 10)
    assert found.divergence == pytest.approx(5 * 0.5 / 10)
    assert found.same_tokens == pytest.approx((3 + 1 + 1) / 10)
    assert found.same_first == pytest.approx(2 / 3)
    assert found.rank_correlation == 1  # of the passes that have one
    assert (found.max_error, found.mean_age, found.max_age) == (7, 1, 9)
    metrics = [part.output.metrics for part in (one, two)]
    assert found.forwards == sum(m.rows[0].forwards for m in metrics) / 2
    assert found.tokens_fed == sum(m.tokens_fed for m in metrics) / 2
    assert found.flops == sum(m.flops or 0 for m in metrics) / 2
    assert found.flops_saved == 0


@pytest.mark.parametrize(
    ("family", "cache", "scheduler"),
    [
        ("SDARForCausalLM", "block_causal", "fixed_quota"),
        ("WeDLMForCausalLM", "streaming", "fixed_quota"),
        ("WeDLMForCausalLM", "streaming", "wedlm"),
    ],
)
def test_old_keys_are_right_where_no_block_sees_a_later_one(
    tmp_path: Path, family: str, cache: str, scheduler: str
) -> None:
    model = hosted(family, tmp_path, dtype="float64")
    prompts = [[3, 4, 5, 6, 7], [8, 9, 10]]
    options: dict[str, Any] = {"max_new_tokens": 16, "scheduler": scheduler}
    options["block_length"] = 4
    out, entries = observe(model, prompts, cache=cache, **options)
    assert float(entries.max_error.max()) < 1e-9
    assert bool((entries.same_tokens == entries.num_masks).all())
    assert float(entries.max_age.max()) >= 4
    assert out.sequences == dllm.generate(model, prompts, **options).sequences


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_ages_of_variants_are_those_of_their_row(guidance: float) -> None:
    """`lopa` keeps several rows of the store for each; a row's age follows its own block."""
    model, prompts = golden_model("llada_gqa"), [[5] * 4, [7] * 11, [9] * 8]
    scheduler = "lopa:0.9,branches=3" if not guidance else "fixed_quota"
    ages: list[list[float]] = []

    def check(seen: PassRecord) -> None:
        ages.append([*ages_of(seen)[1].tolist(), float(seen.canvas.block_step[0])])

    settings = Settings(**SLOTS, cache="dual", scheduler=scheduler, guidance_scale=guidance)
    passes, since = 0, 0
    for event in dllm.Stream(model, prompts, settings, observer=check):
        since = passes if event.kind == "refresh" else since
        assert ages[-1][:3] == [passes - since] * 3
        passes += 1
    assert passes > 4


def test_wrong_audits_are_explained(tiny: dllm.HostedModel) -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        CacheErrorRun(tiny, ["copy: tom."], Settings(), 0)
    with pytest.raises(ValueError, match="no prompts"):
        CacheErrorRun(tiny, [], Settings())
    with pytest.raises(ValueError, match="give seed, not generator"):
        CacheErrorRun(tiny, ["copy: tom."], Settings(generator=torch.Generator()))
    filled = dict.fromkeys(range(8), 5)
    full = Settings(max_new_tokens=8, fixed=filled)
    with pytest.raises(ValueError, match="no pass was made"):
        cache_error(tiny, ["copy: tom."], full, "none")
    assert len(ErrorRecorder().entries) == 0


def test_a_wrapped_module_has_only_the_exact_run() -> None:
    network = golden_model("llada_gqa").network
    model = dllm.wrap(network, mask_token_id=126, eos_token_id=127, vocab_size=128)
    settings = Settings(**SLOTS, scheduler="fixed_quota")
    asked = CacheErrorRun(model, [[5] * 8], settings)
    assert [name for name, reason in asked.allowed().items() if reason is None] == ["none"]
    found = cache_error(model, [[5] * 8], settings, "none")
    assert (found.max_error, found.flops, found.flops_saved) == (0, None, None)


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `dllm cache-error` in this process; returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "argv", ["dllm", "cache-error", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_the_command_prints_a_narrow_table_and_writes_it(command: Command, tmp_path: Path) -> None:
    asked = ("-c", "none", "-c", "dual:vicinity_after=4", "--limit", "3", "--batch-size", "2")
    code, out, err = command(*asked, "--output", str(tmp_path / "new" / "errors.csv"))
    assert code == 0, err
    assert "dual:vic" in out
    assert max(map(len, out.splitlines())) <= 80
    with (tmp_path / "new" / "errors.csv").open() as file:
        none, dual = csv.DictReader(file)
    assert (none["cache"], none["max_error"], none["same_output"]) == ("none", "0.0", "1.0")
    assert dual["cache"] == "dual:vicinity_after=4"
    assert float(dual["max_error"]) > 0
    assert float(dual["correct"]) > 0
    code, out, err = command(*asked, "--json", "--output", str(tmp_path / "errors.md"))
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["passes"] for row in rows] == [int(none["passes"]), int(dual["passes"])]
    assert str(rows[1]["mean_error"]) == dual["mean_error"]
    table = [line for line in (tmp_path / "errors.md").read_text().splitlines() if line[:1] == "|"]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1


def test_the_command_writes_every_pass(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "new" / "passes.csv"
    path.parent.mkdir()
    path.write_text("what was there before, mean_error")
    asked = ("-c", "none", "-c", "dual", "--limit", "3", "--batch-size", "2", "--json")
    code, out, err = command(*asked, "--passes", str(path))
    assert code == 0, err
    none, dual = json.loads(out)["rows"]
    with path.open() as file:
        lines = list(csv.DictReader(file))
    for row in (none, dual):
        mine = [line for line in lines if line["cache"] == row["cache"]]
        assert len(mine) == row["passes"]
        assert {line["prompt"] for line in mine} == {"0", "1", "2"}
        assert max(float(line["max_error"]) for line in mine) == row["max_error"]


def test_the_command_takes_all_that_the_model_allows(command: Command, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("copy: tom, ann.\nreverse: tom, ann.\n")
    code, out, err = command("--prompts", str(prompts), "--json", "-n", "32", "-b", "16")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert {"none", "prefix", "dual"} <= {row["cache"] for row in rows}
    assert all(row["prompts"] == 2 and row["correct"] is None for row in rows)
    for name in dllm.cache.registry.names():
        assert (f"left out: {name}: " in err) != (name in {row["cache"] for row in rows})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "duel"], "did you mean 'dual'"),
        (["-s", "treshold"], "did you mean 'threshold'"),
        (["--limit", "0"], "limit=0"),
        (["--prompts", "no-such.txt"], "no file of prompts"),
        (["--prompts", "a.txt", "--task", "lists"], "not both"),
        (["--task", "arithmetics"], "did you mean 'arithmetic'"),
        (["--output", "rows.json"], "must end in .csv or .md"),
        (["--passes", "rows.md"], "must end in .csv"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--set", "colour=red"], "unknown setting colour"),
        (["-c", "prefix:first_token=force"], "first_token='force'"),
        (["--model", "no-such-folder"], "not an existing folder"),
    ],
)
def test_wrong_commands_are_explained(arguments: list[str], message: str, command: Command) -> None:
    code, out, err = command(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not out


def test_ctrl_c_keeps_the_caches_that_were_done(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CacheErrorRun.observed

    def stopped(self: CacheErrorRun, cache: Any, references: Any) -> Any:
        if cache == "dual":
            raise KeyboardInterrupt
        return original(self, cache, references)

    monkeypatch.setattr(CacheErrorRun, "observed", stopped)
    code, out, err = command("-c", "prefix", "-c", "dual", "--limit", "2", "--json")
    assert code == 130
    assert [row["cache"] for row in json.loads(out)["rows"]] == ["prefix"]
    assert "interrupted" in err


def test_without_memory_the_caches_that_were_done_are_printed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CacheErrorRun.observed

    def failing(self: CacheErrorRun, cache: Any, references: Any) -> Any:
        if cache == "dual":
            raise dllm.NotEnoughMemoryError("memory ran out")
        return original(self, cache, references)

    monkeypatch.setattr(CacheErrorRun, "observed", failing)
    code, out, err = command("-c", "prefix", "-c", "dual", "--limit", "2", "--json")
    assert code == 2
    assert [row["cache"] for row in json.loads(out)["rows"]] == ["prefix"]
    assert "error: memory ran out" in err
