"""WeDLM's streaming cache: exact, each token stored once and as soon as it is final."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.golden.methods.wedlm import engine
from tests.golden.replay import replay
from tests.support import GOLDEN
from tests.support.exactness import RAGGED, Recorded, assert_exact, decode
from tests.support.laws import served, transfers_of
from tests.support.marks import crossed, some
from tests.support.models import MASK, Misleading, Poisoned, family_model, golden_model

NEW = 32
ENDS = [6, 9, 13, 29, 72, 113]
SLOTS: dict[str, Any] = {"max_new_tokens": NEW, "block_length": 8, "eos_token_id": ENDS}
WEDLM = "wedlm:2,penalty=0.1"
MODELS = ("wedlm", "causal")
CASES: list[Any] = json.loads((GOLDEN / "cases" / "wedlm_engine.json").read_text())["cases"]
# Recordings in which a token beyond max_tokens was filled and seen before one within it.
CUT_SHORT = (
    "wedlm_00_p12_w16_n32_e0.4_pf0.02",
    "wedlm_01_p12_w16_n32_e1.0_pf0.02",
    "wedlm_09_p16_w16_n40_eNone_pf0.02",
    "wedlm_12_p24_w16_n64_e1.0_pf0.02",
    "wedlm_13_p24_w12_n37_e1.5_pf0.02",
)


@pytest.mark.few(8)
@pytest.mark.parametrize("scheduler", served("wedlm", "streaming"))
def test_every_logit_is_that_of_no_cache(scheduler: Any) -> None:
    """Of the methods that look at a whole row, tokens: with the cache they see the window."""
    needs = dllm.schedulers.registry.create(scheduler).needs(NEW, 8)
    if needs.whole_row:
        options = {**SLOTS, "scheduler": scheduler, "cache": "streaming"}
        together = decode(family_model("wedlm"), RAGGED, **options)[0]
        assert MASK not in {token for row in together.sequences for token in row}
        return
    assert_exact(family_model("wedlm"), RAGGED, "streaming", **{**SLOTS, "scheduler": scheduler})


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("name", "at_eos"), crossed(MODELS, ("ignore", "stop", "skip", "block", "truncate"))
)
def test_exact_with_every_rule_for_end_tokens(name: str, at_eos: str) -> None:
    options = {**SLOTS, "eos_token_id": list(range(0, 126, 12)), "scheduler": WEDLM}
    assert_exact(family_model(name), RAGGED, "streaming", at_eos=at_eos, **options)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", MODELS)
def test_exact_around_given_text(name: str) -> None:
    """Given text to the right of the window is seen by the masks before it."""
    model = family_model(name)
    fixed = {0: 5, **{at: 30 + at for at in range(7, 22)}, 30: 7}
    options: dict[str, Any] = {**SLOTS, "max_new_tokens": 40, "fixed": fixed}
    for scheduler in (WEDLM, "threshold:0.4", "token_editing:0.3,editing_threshold=0.2"):
        assert_exact(model, RAGGED, "streaming", scheduler=scheduler, **options)
    rows = [[1, MASK, 3], [4] * 9 + [MASK] * 5 + [7] * 30 + [MASK] * 3, [8] * 8 + [MASK] * 9]
    assert_exact(model, rows, "streaming", infill=True, block_length=4, scheduler=WEDLM)


@pytest.mark.few(2)
@pytest.mark.parametrize(("name", "chunk"), crossed(MODELS, (1, 5, 16, 80)))
def test_a_long_prompt_is_read_in_parts(name: str, chunk: int) -> None:
    prompts = [[(7 * n + row) % 90 for n in range(size)] for row, size in enumerate((45, 70, 4))]
    out = assert_exact(family_model(name), prompts, f"streaming:{chunk}", scheduler=WEDLM, **SLOTS)
    assert out.metrics.forwards.get("commit", 0) == -(-70 // chunk) - 1


@pytest.mark.few(1)
@pytest.mark.parametrize("scheduler", [WEDLM, "fixed_quota:order=random", "rcr"])
def test_a_row_does_not_depend_on_its_batch(scheduler: Any) -> None:
    model, options = family_model("wedlm"), {**SLOTS, "cache": "streaming", "scheduler": scheduler}
    together = decode(model, RAGGED, **options)[0]
    for row, prompt in enumerate(RAGGED):
        alone = decode(model, [prompt], **{**options, "seed": row})[0]
        assert alone.sequences[0] == together.sequences[row]
        assert alone.metrics.rows[0] == together.metrics.rows[row]
    waiting = decode(model, RAGGED, **options, batch_size=2)[0]
    assert waiting.sequences == together.sequences
    assert waiting.metrics.rows == together.metrics.rows


@pytest.mark.parametrize("cached", ["streaming", "streaming:8"])
def test_stale_slots_and_logits_that_are_not_there_are_never_read(cached: str) -> None:
    model, options = (
        family_model("wedlm"),
        {**SLOTS, "cache": cached, "scheduler": WEDLM, "seed": 0},
    )
    prompts = [*RAGGED, list(range(40))]
    clean = dllm.generate(model, prompts, **options).sequences
    spoiled: list[Any] = [Poisoned(model), Misleading(model, 100)]
    for other in spoiled:
        assert dllm.generate(other, prompts, **options).sequences == clean


def test_a_stream_ends_with_what_generate_returns() -> None:
    model, options = family_model("wedlm"), {**SLOTS, "cache": "streaming", "scheduler": WEDLM}
    running = dllm.stream(model, RAGGED, seed=3, temperature=0.8, **options)
    shown: dict[tuple[int, int], int] = {}
    for event in running:
        for row, column in event.committed.nonzero().tolist():
            place = row, int(event.columns[row, column])
            assert place not in shown, "a token is written once"
            shown[place] = int(event.tokens[row, column])
    out = dllm.generate(model, RAGGED, seed=3, temperature=0.8, **options)
    assert out.sequences == running.output.sequences
    for (row, column), token in shown.items():
        assert out.sequences[row][column] == token


def test_saved_and_read_again_it_says_the_same(tmp_path: Any) -> None:
    model = golden_model("wedlm")
    dllm.save(model, tmp_path / "again")
    again = dllm.load(tmp_path / "again")
    assert again.spec == model.spec
    options = {**SLOTS, "cache": "streaming", "scheduler": WEDLM}
    prompts = [[1, 2, 3], list(range(30))]
    expected = dllm.generate(model, prompts, **options).sequences
    assert dllm.generate(again, prompts, **options).sequences == expected


@pytest.mark.parametrize("scheduler", [WEDLM, "wedlm:null", "threshold:0.4"])
def test_one_host_transfer_a_step(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {**SLOTS, "seed": 0, "scheduler": scheduler, "cache": "streaming:8"}
    events = iter(dllm.stream(family_model("wedlm"), [*RAGGED, list(range(40))], **options))
    next(events)  # the prompts are read in parts before it
    waits = transfers_of(events, monkeypatch)
    assert len(waits) > 3
    assert set(waits) == {1}


class Stores(Recorded):
    """A model that keeps its store as each pass left it."""

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        logits = super().forward(tokens, plan, store)
        self.stores[-1] = copy.deepcopy(store)
        return logits


def test_what_is_stored_for_good_is_what_a_causal_pass_over_the_answer_stores() -> None:
    """Nothing that stands in the window, masks included, leaves a trace in the prefix."""
    model, prompt = golden_model("wedlm"), list(range(20, 40))
    watched: Any = Stores(model)
    options = {**SLOTS, "cache": "streaming", "scheduler": WEDLM, "at_eos": "ignore"}
    running = dllm.stream(watched, [prompt], **options)
    masked = [running.canvas.masked[0].clone()]
    for _ in running:
        masked.append(running.canvas.masked[0].clone())
    whole = torch.tensor([running.output.sequences[0]])
    columns = torch.arange(whole.shape[1])[None]
    seen = columns[0] <= columns[..., None]
    plan = StepPlan("step", columns, columns, whole.shape[1], seen, stored=columns)
    plain = model.new_store(1, running.canvas.layout.num_stored)
    model.forward(whole, plan, plain)
    kept = []
    for before, store in zip(masked, watched.stores, strict=False):
        prefix = int(before.int().argmax())  # no mask stood before it in this pass
        kept.append(prefix)
        for held, expected in zip(
            (*store.keys, *store.values), (*plain.keys, *plain.values), strict=True
        ):
            torch.testing.assert_close(held[:prefix], expected[:prefix], rtol=0, atol=1e-10)
    grown = sum(later > earlier for earlier, later in itertools.pairwise(kept))
    assert grown >= 4
    assert any((later - kept[0]) % 8 for later in kept), "it grows by tokens, not by blocks"


def test_each_token_is_fed_until_it_is_final_and_once_more() -> None:
    options = {**SLOTS, "scheduler": "wedlm:null,penalty=1000", "cache": "streaming"}
    out = decode(family_model("wedlm"), [[5] * 11], at_eos="ignore", **options)[0]
    assert list(out.metrics.fed) == [19, *[9] * 24, *range(8, 1, -1)]  # left to right


@pytest.mark.few(1)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_recordings_without_a_cache_and_cut_at_max_tokens(case: Any) -> None:
    """The law of exactness on what was recorded, and where our shorter canvas shows."""
    assert replay(case, GOLDEN / "models") is None
    args, model = case["args"], golden_model("wedlm")
    options = {**engine(case), "statistics_dtype": torch.float64}
    for more in (0, 2 * args["window"]):
        options["max_new_tokens"] = args["max_tokens"] + more
        runs = [
            dllm.generate(model, [case["prompt"]], **{**options, "cache": cached})
            for cached in ("streaming", "none")
        ]
        assert runs[0].sequences == runs[1].sequences
        assert runs[0].trace.commits(0) == runs[1].trace.commits(0)
        asked = case["final"][: len(case["prompt"]) + args["max_tokens"]]
        same = list(runs[0].sequences[0])[: len(asked)] == asked
        assert same == (more > 0 or case["id"] not in CUT_SHORT)


@pytest.mark.few(1)
@pytest.mark.parametrize("scheduler", some((WEDLM, "threshold:0.4"), every=2))
def test_a_conversation_is_not_read_again(scheduler: str) -> None:
    model, memory = family_model("wedlm"), dllm.PromptMemory()
    options = {**SLOTS, "cache": "streaming", "scheduler": scheduler, "at_eos": "ignore"}
    prompts = [list(prompt) for prompt in RAGGED]
    for turn in range(3):
        plain = dllm.generate(model, prompts, seed=turn, **options)
        quick = dllm.generate(model, prompts, seed=turn, memory=memory, **options)
        assert quick.sequences == plain.sequences
        if turn:
            lengths = [len(row) - 3 for row in prompts]
            pairs = zip(memory.reused, lengths, strict=True)
            assert all(had - 2 * 8 <= taken < had for taken, had in pairs)
            assert quick.metrics.tokens_fed < plain.metrics.tokens_fed
        prompts = [[*row, 33, 34, 35] for row in plain.sequences]


def test_what_does_not_go_together_is_refused_by_name() -> None:
    last, full, blocks = (family_model("wedlm"), golden_model("llada_gqa"), family_model("sdar"))
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (full, {"cache": "streaming"}, "cache 'streaming' .*attention='full'; use cache='dual'"),
        (blocks, {"cache": "streaming"}, "attention='block_causal'; use cache='block_causal'"),
        *(
            (last, {"cache": cached}, f"cache '{cached}' does not follow: use cache='streaming'")
            for cached in ("prefix", "dual", "dkv", "window_diffusion", "dllm_cache")
        ),
        (last, {"cache": "block_causal"}, "'block_causal' does not follow"),
        (last, {"cache": "sub_block:4"}, "'sub_block' does not follow"),
        (last, {"cache": "sparse"}, "'sparse'"),
        (last, {"verifier": "ssd:3", "scheduler": "threshold"}, "verifier 'ssd:3' runs drafts"),
        (last, {"scheduler": "lopa"}, "scheduler 'lopa' runs variants"),
        (last, {"guidance_scale": 0.5}, "guidance_scale=0.5 runs the prompt as masks"),
        (last, {"scheduler": "wino"}, "attention='masks_last'"),
    ]
    for model, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            dllm.stream(model, RAGGED, **{**SLOTS, **options})
