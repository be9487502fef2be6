"""Block-causal caches: exact, with the fed tokens of the closed form, also from call to call."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm.cli.main import main
from dllm.models.families import FAMILIES
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.exactness import NEW, RAGGED, SLOTS, Recorded, assert_exact, decode
from tests.support.laws import transfers_of
from tests.support.marks import crossed, some
from tests.support.models import BLOCK, CONFIG, MASK, family_model, golden_model, random_prompts

MODELS = ("sdar", "fast_dllm_v2", "causal")
SCHEDULERS: list[Any] = [
    "fixed_quota:order=random",
    "threshold:0.4",
    "multi_block:0.3,blocks=3",
    "lopa:0.5,branches=3",
    "ete:0.5,mode=commit,scope=window,blocks=2",
    "token_editing:0.3,editing_threshold=0.2,post_steps=3",
    "remdm:remask=2,begin=0.5,loops=4",
    "hierarchical:0.5,low_threshold=0.2,remask_threshold=0.4",
    {"name": "adablock", "delimiters": (6, 47, 113), "inner": "threshold:0.4"},
]
AUTHORS = (  # as Fast-dLLM v2 decodes, with its block cache and without it
    "sub_block:4,first_token=force",
    "sub_block:4,first_token=force,reuse=false",
    "block_causal:first_token=force",
)


@pytest.mark.few(5)
@pytest.mark.parametrize(("name", "scheduler"), crossed(("sdar", "fast_dllm_v2"), SCHEDULERS))
def test_every_logit_is_that_of_no_cache(name: str, scheduler: Any) -> None:
    out = assert_exact(family_model(name), RAGGED, "block_causal", scheduler=scheduler)
    assert set(out.metrics.forwards) == {"step"}


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("name", "at_eos"), crossed(MODELS, ("ignore", "stop", "skip", "block", "truncate"))
)
def test_exact_with_every_rule_for_end_tokens(name: str, at_eos: str) -> None:
    ends = list(range(0, 126, 12))
    options = {"eos_token_id": ends, "scheduler": "threshold:0.4", "max_new_tokens": 32}
    assert_exact(family_model(name), RAGGED, "block_causal", at_eos=at_eos, **options)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "scheduler"), crossed(MODELS, ("end_of_text:threshold:0.4", "prophet:inner=threshold"))
)
def test_methods_that_see_the_whole_row_see_it_up_to_the_block(name: str, scheduler: str) -> None:
    ends = list(range(0, 126, 12))
    options = {"eos_token_id": ends, "scheduler": scheduler, "max_new_tokens": 32}
    hidden = {"name": "none", "beyond_block": False}
    exact = decode(family_model(name), RAGGED, cache=hidden, **options)[0]
    cached = decode(family_model(name), RAGGED, cache="block_causal", **options)[0]
    assert cached.sequences == exact.sequences


@pytest.mark.few(2)
@pytest.mark.parametrize(("name", "block"), crossed(MODELS, (2, 4, 8, 16)))
def test_exact_in_parts_and_multiples_of_the_block(name: str, block: int) -> None:
    options = {"block_length": block, "max_new_tokens": 32, "scheduler": "token_editing:0.3"}
    assert_exact(family_model(name), RAGGED, "block_causal", **options)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", MODELS)
def test_exact_around_given_text(name: str) -> None:
    model = family_model(name)
    fixed = {0: 5, **{at: 30 + at for at in range(7, 22)}, 30: 7}  # fills whole blocks
    options: dict[str, Any] = {"scheduler": "threshold:0.4", "block_length": 8}
    assert_exact(model, RAGGED, "block_causal", fixed=fixed, max_new_tokens=40, **options)
    rows = [[1, MASK, 3], [4] * 9 + [MASK] * 5 + [7] * 30 + [MASK] * 3, [8] * 8 + [MASK] * 9]
    assert_exact(model, rows, "block_causal", infill=True, block_length=1)


@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_exact_in_any_batch(data: st.DataObject) -> None:
    model = family_model(data.draw(st.sampled_from(MODELS)))
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    prompts = random_prompts(len(lengths), seed=data.draw(st.integers(0, 99)))
    prompts = [(prompt * 14)[:n] for prompt, n in zip(prompts, lengths, strict=True)]
    chunk = data.draw(st.sampled_from(["", ":8", ":16"]))
    assert_exact(
        model,
        prompts,
        f"block_causal{chunk}",
        scheduler=data.draw(st.sampled_from(SCHEDULERS)),
        at_eos=data.draw(st.sampled_from(["ignore", "stop", "truncate"])),
        block_length=data.draw(st.sampled_from([4, 8])),
    )


def passes(recorded: Recorded) -> list[tuple[str, list[int]]]:
    """Returns each pass's kind and the columns that row 0 fed to be kept."""
    found = []
    for plan, store in zip(recorded.plans, recorded.stores, strict=True):
        assert store is not None
        assert plan.stored is not None
        kept = plan.positions[0][plan.stored[0] != -1]
        found.append((str(plan.kind), kept.tolist()))
    return found


def test_the_passes_of_a_row_by_hand() -> None:
    """11 given tokens and 21 masks in blocks of 8: [8, 16) has five masks, then two full ones."""
    options = {"scheduler": "fixed_quota:steps=6", "max_new_tokens": 21, "at_eos": "ignore"}
    expected = {
        "sdar": [(0, 16), (8, 16), (8, 24), (16, 24), (16, 32), (24, 32)],
        # One column more to the left, where the token before the block predicts its first.
        "fast_dllm_v2": [(0, 16), (7, 16), (8, 24), (15, 24), (16, 32), (23, 32)],
    }
    for name, spans in expected.items():
        out, _, recorded = decode(family_model(name), [[5] * 11], cache="block_causal", **options)
        assert passes(recorded) == [("step", list(range(*span))) for span in spans]
        assert out.metrics.tokens_fed == sum(end - start for start, end in spans)


def test_the_passes_that_force_a_first_token_by_hand() -> None:
    """The same row: a pass of their own stores [8, 16) and [16, 24), for one token each."""
    options = {"scheduler": "fixed_quota:steps=6", "max_new_tokens": 21, "at_eos": "ignore"}
    spans = [(0, 16), (8, 16), (8, 16), (16, 24), (16, 24), (24, 32)]
    for cached in ("block_causal:first_token=force", "sub_block:8,first_token=force"):
        out, events, recorded = decode(
            family_model("fast_dllm_v2"), [[5] * 11], cache=cached, **options
        )
        assert passes(recorded) == [("step", list(range(*span))) for span in spans]
        # Columns that each pass commits: of two steps a block, the forced token takes the first.
        assert [int(event.committed.sum()) for event in events] == [3, 2, 1, 7, 1, 7]
        assert out.trace.commit_step[0, [16, 24]].tolist() == [2, 4]


@torch.inference_mode()
def test_a_forced_token_is_the_likeliest_after_what_stands_before_the_block() -> None:
    model = family_model("fast_dllm_v2")
    for cached in AUTHORS:
        out, checked = decode(model, RAGGED, cache=cached, at_eos="ignore")[0], 0
        for row in range(len(RAGGED)):
            tokens, forced = torch.tensor(out.sequences[row]), out.trace.block_entry[row]
            for start in range(BLOCK, len(tokens), BLOCK):
                if forced[start] < 0 or start <= len(RAGGED[row]) - 1:
                    continue
                seen = tokens[:start]
                columns = torch.arange(start)
                mask = columns // BLOCK <= columns[:, None] // BLOCK
                plan = StepPlan("step", columns[None], columns[None, -1:], start, mask[None])
                logits = model.forward(seen[None], plan, None)[0, 0]
                logits[MASK] = -torch.inf
                assert int(tokens[start]) == int(logits.argmax())
                assert out.trace.commit_step[row, start] == forced[start]
                checked += 1
        assert checked >= len(RAGGED)


def test_a_block_that_begins_inside_one_of_the_model_forces_one_token() -> None:
    """Its pass is fed the whole trained block, so that it predicts more than is taken."""
    model, options = family_model("fast_dllm_v2"), {"scheduler": "threshold:0", "block_length": 4}
    for cached in ("block_causal:first_token=force", "sub_block:2,first_token=force"):
        _, events, recorded = decode(
            model, [[5] * 8], cache=cached, at_eos="ignore", max_new_tokens=12, **options
        )
        counts = [int(event.committed.sum()) for event in events]
        assert counts == ([1, 3] * 3 if "block_causal" in cached else [1, 1, 2] * 3)
        assert passes(recorded)[0] == ("step", list(range(8)))
        assert passes(recorded)[len(counts) // 3] == ("step", list(range(8, 16)))


@pytest.mark.parametrize("reuse", [True, False])
def test_a_sub_block_of_the_whole_block_forces_exactly(reuse: bool) -> None:
    model = family_model("fast_dllm_v2")
    exact = decode(model, RAGGED, cache="block_causal:first_token=force")[0]
    part = {"name": "sub_block", "sub_block": BLOCK, "first_token": "force", "reuse": reuse}
    assert decode(model, RAGGED, cache=part)[0].sequences == exact.sequences
    assert exact.sequences != decode(model, RAGGED, cache="block_causal")[0].sequences


@torch.inference_mode()
def test_without_reuse_a_part_sees_its_block_as_it_is() -> None:
    """The order of sub-blocks with the logits of the exact cache, and all of the block fed."""
    model, seen = family_model("fast_dllm_v2"), {}
    for cached in ("sub_block:4,reuse=false", "sub_block:4"):
        _, events, recorded = decode(model, RAGGED[1:2], cache=cached, at_eos="ignore")
        tokens = torch.tensor([RAGGED[1] + [MASK] * 19])
        errors = []
        for event, logits, plan in zip(events, recorded.logits, recorded.plans, strict=True):
            columns = torch.arange(tokens.shape[1])
            mask = columns // BLOCK <= columns[:, None] // BLOCK
            rows = event.columns - 1
            whole = StepPlan("step", columns[None], rows, len(columns), mask[None])
            full = model.forward(tokens, whole, None)
            assert plan.known is not None
            open_ = (tokens.gather(1, event.columns) == MASK) & plan.known
            errors.append(float((logits - full)[open_].abs().max()))
            tokens.scatter_(1, event.columns, event.tokens)
        seen[cached] = max(errors)
    assert seen["sub_block:4,reuse=false"] < 1e-9 < 1e-3 < seen["sub_block:4"]


@pytest.mark.parametrize("verifier", ["ssd:3", "freedave:4,execution=tree"])
def test_a_verifier_changes_nothing_where_first_tokens_are_forced(verifier: str) -> None:
    model = family_model("fast_dllm_v2")
    for scheduler in ("fixed_quota", "threshold:0.4"):
        options = {"cache": "block_causal:first_token=force", "scheduler": scheduler}
        plain = decode(model, RAGGED, **options)[0]
        verified = decode(model, RAGGED, verifier=verifier, **options)[0]
        assert verified.sequences == plain.sequences
        assert torch.equal(verified.trace.commit_step, plain.trace.commit_step)


def test_only_shifted_models_force_a_first_token() -> None:
    for cached in ("block_causal:first_token=force", "sub_block:4,first_token=force"):
        with pytest.raises(ValueError, match="first_token='force' is for models with shifted"):
            decode(family_model("sdar"), RAGGED, cache=cached)


@pytest.mark.parametrize("name", ["sdar", "fast_dllm_v2"])
def test_fed_tokens_match_the_closed_form(name: str) -> None:
    """A block of n passes is fed n times, and once more with the first pass of the next."""
    model = family_model(name)
    for prompt, slots in ((16, 24), (13, 27), (3, 13)):
        options = {"scheduler": "fixed_quota", "max_new_tokens": slots, "at_eos": "ignore"}
        out, _, _ = decode(model, [[5] * prompt], cache="block_causal", **options)
        first = prompt // BLOCK * BLOCK
        blocks = (prompt + slots - first) // BLOCK
        lead = model.spec.logit_shift * (
            slots - blocks - (first == 0) * (first + BLOCK - prompt - 1)
        )
        assert out.metrics.num_forwards == slots
        assert out.metrics.tokens_fed == first + BLOCK * (slots + blocks - 1) + lead


def test_finished_rows_are_not_fed() -> None:
    """Row 0 is full after 8 passes; row 1 goes on with a block of three columns."""
    rows = [[5] * 8 + [MASK] * 8, [6] * 8 + [MASK] * 11]
    options = {"scheduler": "fixed_quota", "infill": True, "block_length": 8}
    out = decode(family_model("sdar"), rows, cache="block_causal", **options)[0]
    assert out.metrics.num_forwards == 11
    assert out.metrics.tokens_fed == 2 * (16 + 7 * 8 + (8 + 3) + 2 * 3)


def test_a_full_block_is_stored_with_its_final_tokens() -> None:
    """Without the previous block in the pass that enters the next, logits are wrong."""
    model = family_model("sdar")
    exact = decode(model, RAGGED, cache="block_causal")[0].sequences
    from dllm.cache.block_causal import BlockCausalCache

    class Forgetful(BlockCausalCache):
        def feeds(self, canvas: Any, spec: Any) -> Tensor:
            columns = torch.arange(canvas.tokens.shape[1])
            fed = super().feeds(canvas, spec)
            started = (canvas.step > 0)[:, None]
            return fed & ~(started & (columns < canvas.block_start[:, None]))

    assert decode(model, RAGGED, cache=Forgetful())[0].sequences != exact


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("cached", "scheduler"), crossed(("block_causal:8", "sub_block:4", *AUTHORS), SCHEDULERS)
)
def test_a_row_does_not_depend_on_its_batch(cached: str, scheduler: Any) -> None:
    model = family_model("fast_dllm_v2")
    options = {"cache": cached, "scheduler": scheduler}
    if "force" in cached and str(scheduler).startswith("lopa"):
        with pytest.raises(ValueError, match="needs first_token='feed'"):
            decode(model, RAGGED, **options)
        return
    together = decode(model, RAGGED, **options)[0]
    for row, prompt in enumerate(RAGGED):
        alone = decode(model, [prompt], **{**options, "seed": row})[0]
        assert alone.sequences[0] == together.sequences[row]
        assert alone.metrics.rows[0] == together.metrics.rows[row]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", some(MODELS, every=2))
def test_a_long_prompt_is_read_in_parts(name: str) -> None:
    model = family_model(name)
    prompts = [
        random_prompts(1, seed=s, low=n, high=n + 1)[0] for s, n in ((0, 45), (1, 70), (2, 4))
    ]
    for chunk in (8, 24, 64, 80):
        out = assert_exact(model, prompts, f"block_causal:{chunk}")
        first = 70 if name == "causal" else 64
        assert out.metrics.forwards.get("commit", 0) == -(-first // chunk) - 1
    _, _, recorded = decode(model, prompts, cache="block_causal:16")
    commits = [p for p in recorded.plans if p.kind == "commit"]
    assert all(logits.shape[1] == 0 for logits in recorded.logits[: len(commits)])
    assert [p.num_keys for p in commits] == [16 * (n + 1) for n in range(len(commits))]
    assert max(p.positions.shape[1] for p in recorded.plans) <= 16 + 2 * 3 * BLOCK


@pytest.mark.few(2)
@pytest.mark.parametrize(("name", "cached"), crossed(MODELS, ("block_causal:8", "sub_block:4")))
def test_stale_slots_are_never_read(name: str, cached: str) -> None:
    class Poisoned(Recorded):
        def new_store(self, num_rows: int, num_columns: int) -> KVStore:
            store = self.model.new_store(num_rows, num_columns)
            for tensor in (*store.keys, *store.values):
                tensor.normal_(std=30, generator=torch.Generator().manual_seed(3))
            return store

    model, prompts = family_model(name), [*RAGGED, list(range(40))]
    clean = dllm.generate(model, prompts, cache=cached, **SLOTS).sequences
    poisoned: Any = Poisoned(model)
    assert dllm.generate(poisoned, prompts, cache=cached, **SLOTS).sequences == clean


@pytest.mark.few(1)
@pytest.mark.parametrize("cached", ["block_causal:8", "block_causal"])
def test_guidance_is_exact_in_a_batch_of_any_lengths(cached: str) -> None:
    assert_exact(family_model("sdar"), RAGGED, cached, guidance_scale=0.7)


def probabilities(
    model: dllm.HostedModel, tokens: list[int], columns: list[int], store: KVStore
) -> dict[int, Tensor]:
    """Returns what a pass over some columns of one row predicts for each column."""
    at = torch.tensor([columns])
    plan = StepPlan(
        kind="step",
        positions=at,
        logit_rows=torch.arange(len(columns))[None],
        num_keys=len(tokens),
        attention_mask=torch.arange(len(tokens)) // BLOCK <= at[..., None] // BLOCK,
        stored=at,
    )
    logits = model.forward(torch.tensor([[tokens[c] for c in columns]]), plan, store)[0]
    predicted = logits.softmax(-1)
    predicted[:, MASK] = 0
    shifted = [column + model.spec.logit_shift for column in columns]
    return dict(zip(shifted, predicted, strict=True))


def oracle(model: dllm.HostedModel, prompt: list[int], part: int, sure: float) -> Any:
    """Returns the tokens and fed columns of one row under the sub-block rule, in plain loops."""
    kept = len(prompt) + NEW
    tokens = [*prompt, *[MASK] * (NEW + -kept % BLOCK)]  # whole blocks
    store = model.new_store(1, len(tokens))
    fed: list[list[int]] = []
    stored = 0
    for start in range(len(prompt) // BLOCK * BLOCK, len(tokens), BLOCK):
        end, left = min(start + BLOCK, len(tokens)), max(start - model.spec.logit_shift, 0)
        begins = True
        while MASK in tokens[start:end]:
            first = tokens.index(MASK) // part * part
            last = min(first + part, end)
            columns = list(range(first, last))
            if begins or tokens[first] == MASK:
                columns = list(range(min(stored, left) if begins else left, end))
            begins, stored = False, start
            fed.append(columns)
            predicted = probabilities(model, tokens, columns, store)
            found = {c: predicted[c].max(-1) for c in range(first, last) if tokens[c] == MASK}
            top = max(found, key=lambda column: float(found[column].values))
            for column, proposal in found.items():
                if column == top or float(proposal.values) > sure:
                    tokens[column] = int(proposal.indices)
    return tuple(tokens[:kept]), fed


@pytest.mark.few(1)
@torch.inference_mode()
@pytest.mark.parametrize(("name", "part"), crossed(("sdar", "fast_dllm_v2"), (2, 4, 8)))
def test_sub_blocks_follow_the_rule_written_in_plain_loops(name: str, part: int) -> None:
    model, prompts = family_model(name), [*RAGGED, list(range(37, 50))]
    options = {
        "scheduler": "threshold:0.2",
        "at_eos": "ignore",
        "cache": f"sub_block:{part}",
    }
    together = decode(model, prompts, **options)[0]
    for row, prompt in enumerate(prompts):
        expected, fed = oracle(model, prompt, part, 0.2)
        assert together.sequences[row] == expected
        alone = decode(model, [prompt], **options)[2]
        assert [columns for _, columns in passes(alone)] == fed


@pytest.mark.parametrize("name", some(("fast_dllm_v2", "sdar"), every=2))
def test_a_sub_block_of_the_whole_block_is_exact(name: str) -> None:
    model = family_model(name)
    for scheduler in SCHEDULERS:
        if str(scheduler).startswith(("multi_block", "ete", "lopa")):
            continue  # they commit beyond the block, which sub-blocks do not
        exact = decode(model, RAGGED, scheduler=scheduler, cache="block_causal")[0]
        parts = decode(model, RAGGED, scheduler=scheduler, cache="sub_block")[0]
        assert parts.sequences == exact.sequences
    parts = decode(model, RAGGED, cache="sub_block:4")[0]
    assert parts.sequences != exact.sequences, "the model does not feel stale keys in its block"


@pytest.mark.few(4)
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=str)
def test_only_the_first_open_sub_block_is_committed(scheduler: Any) -> None:
    options: dict[str, Any] = {**SLOTS, "cache": "sub_block:2", "scheduler": scheduler}
    running = dllm.stream(family_model("fast_dllm_v2"), RAGGED, seed=0, **options)
    before = running.canvas.tokens.clone()
    for event in running:
        opened = (before == MASK).int().argmax(1) // 2
        outside = event.committed & (event.columns // 2 != opened[:, None])
        full = ~(before.gather(1, event.columns[:, :BLOCK]) == MASK).any(1)  # it edits all parts
        assert not (outside & ~full[:, None]).any()
        before = running.canvas.tokens.clone()


def turns(model: dllm.HostedModel, memory: Any, count: int, **options: Any) -> Any:
    """Returns the outputs of a conversation: each prompt is all before it and three tokens."""
    outputs = []
    prompts = [list(prompt) for prompt in RAGGED]
    for turn in range(count):
        options = {**SLOTS, "seed": turn, "cache": "block_causal", **options}
        outputs.append(dllm.generate(model, prompts, memory=memory, **options))
        prompts = [[*row, 33, 34, 35] for row in outputs[-1].sequences]
    return outputs


@pytest.mark.few(1)
@pytest.mark.parametrize("cached", ["block_causal", "block_causal:8", "sub_block:4", *AUTHORS])
def test_a_conversation_is_not_read_again(cached: str) -> None:
    model, memory = family_model("fast_dllm_v2"), dllm.PromptMemory()
    several = "threshold:0.5" if "force" in cached else "lopa:0.5,branches=3"
    for scheduler in (several, "token_editing:0.3"):
        memory.clear()
        plain = turns(model, None, 3, cache=cached, scheduler=scheduler)
        quick = turns(model, memory, 3, cache=cached, scheduler=scheduler)
        assert [out.sequences for out in quick] == [out.sequences for out in plain]
        assert [out.metrics.rows for out in quick] == [out.metrics.rows for out in plain]
        fed = [[out.metrics.tokens_fed for out in outs] for outs in (plain, quick)]
        assert fed[0][0] == fed[1][0]
        assert all(less <= more for more, less in zip(*fed, strict=True))
        assert fed[1][-1] < fed[0][-1]
        for row, taken in enumerate(memory.reused):
            before = len(plain[1].sequences[row])
            assert taken % BLOCK == 0
            assert before - NEW - BLOCK <= taken < before


def test_rows_take_what_any_row_has_in_common() -> None:
    """Examples shared by all prompts are read once, whatever the order and number of rows."""
    model, memory = family_model("sdar"), dllm.PromptMemory()
    shared = random_prompts(1, seed=5, low=34, high=35)[0]  # four blocks and two tokens
    first = [[*shared, 1, 2, 3], [7] * 20]
    dllm.generate(model, first, memory=memory, cache="block_causal", **SLOTS)
    assert memory.reused == (0, 0)
    second = [[7] * 19, [*shared, 9], [8, *shared], [*shared[:20], *[3] * 20], shared]
    given = dllm.generate(model, second, memory=memory, cache="block_causal", **SLOTS)
    assert list(memory.reused) == [16, 32, 0, 16, 32]
    assert given.sequences == dllm.generate(model, second, **SLOTS).sequences
    third = [first[0]]
    given = dllm.generate(model, third, memory=memory, cache="block_causal", **SLOTS)
    assert list(memory.reused) == [32]
    assert given.sequences == dllm.generate(model, third, **SLOTS).sequences


@pytest.mark.parametrize("stop", some(range(1, 12), every=4))
def test_an_interrupted_run_leaves_what_was_final(stop: int) -> None:
    model, memory = family_model("fast_dllm_v2"), dllm.PromptMemory()
    options = {**SLOTS, "cache": "block_causal", "at_eos": "ignore", "scheduler": "threshold:0.2"}
    running = dllm.stream(model, RAGGED, memory=memory, **options)
    events = iter(running)
    for _ in range(stop):
        next(events, None)
    prompts = [[token % MASK for token in row] + [3] for row in running.output.sequences]
    out = dllm.generate(model, prompts, memory=memory, **options)
    assert out.sequences == dllm.generate(model, prompts, **{**options, "cache": "none"}).sequences
    assert max(memory.reused) >= BLOCK


def test_memory_counts_its_bytes_and_forgets() -> None:
    model, memory = family_model("sdar"), dllm.PromptMemory()
    assert memory.num_bytes == 0
    out = dllm.generate(model, RAGGED, memory=memory, cache="block_causal", **SLOTS)
    assert memory.num_bytes == out.metrics.store_bytes > 0
    memory.clear()
    assert memory.num_bytes == 0
    again = dllm.generate(model, RAGGED, memory=memory, cache="block_causal", **SLOTS)
    assert memory.reused == (0,) * len(RAGGED)
    assert again.metrics.tokens_fed == out.metrics.tokens_fed


def test_what_cannot_be_served_is_explained() -> None:
    blocks, full = family_model("sdar"), golden_model("llada_gqa")
    memory = dllm.PromptMemory()
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (full, {"cache": "block_causal"}, "needs a block-causal model.*'prefix' or 'dual'"),
        (full, {"cache": "sub_block"}, "cache 'sub_block' needs a block-causal model"),
        (full, {"memory": memory, "cache": "dual"}, "every column sees every other"),
        (blocks, {"memory": memory}, "not 'none': use cache='block_causal'"),
        (blocks, {"memory": memory, "cache": "prefix"}, "not 'prefix'"),
        (
            blocks,
            {"memory": memory, "cache": "block_causal", "guidance_scale": 1.0},
            "guidance_scale=1.0",
        ),
        (blocks, {"cache": "block_causal:12"}, "=12 is not a multiple of .* of 8"),
        (blocks, {"cache": "block_causal:0"}, "=0 must be at least 1"),
        (blocks, {"cache": "sub_block:3"}, "sub_block=3 does not divide .* of 8"),
        (blocks, {"cache": "sub_block:0"}, "sub_block=0 must be at least 1"),
        (blocks, {"cache": "block_causal", "block_length": 6}, "not a multiple of the 8"),
        (blocks, {"cache": "block_causal", "scheduler": "wino"}, "bidirectional"),
    ]
    for model, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            dllm.generate(model, RAGGED, **{**SLOTS, **options})
    dllm.generate(blocks, RAGGED, memory=memory, cache="block_causal", **SLOTS)
    with pytest.raises(ValueError, match="of the model 'sdar' and cannot serve 'fast_dllm_v2'"):
        dllm.generate(
            family_model("fast_dllm_v2"), RAGGED, memory=memory, cache="block_causal", **SLOTS
        )


@pytest.mark.parametrize(
    ("scheduler", "cached"),
    crossed(
        ("threshold:0.4", "token_editing:0.4", "lopa:0.6,branches=3"),
        ("block_causal:8", "sub_block:4"),
    ),
)
def test_one_host_transfer_a_step(
    scheduler: str, cached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**SLOTS, "seed": 0, "scheduler": scheduler, "cache": cached}
    prompts = [*RAGGED, list(range(40))]
    events = iter(dllm.stream(family_model("fast_dllm_v2"), prompts, **options))
    next(events)  # the prompts are read in parts before it
    waits = transfers_of(events, monkeypatch)
    assert len(waits) > 3
    assert set(waits) == {1}


def test_chat_reads_each_turn_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = dllm.load("tiny")
    assert tiny.tokenizer is not None
    tiny.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    config = {**CONFIG, "architectures": ["SDARForCausalLM"], "vocab_size": tiny.spec.vocab_size}
    ids = {"mask_token_id": tiny.spec.mask_token_id, "eos_token_id": tiny.spec.eos_token_ids[0]}
    torch.manual_seed(0)
    network = Transformer(FAMILIES["SDARForCausalLM"].read_network(config))
    folder = str(tmp_path / "blocks")
    spec = replace(tiny.spec, attention="block_causal", block_length=BLOCK)
    dllm.save(replace(tiny, network=network, spec=spec, config={**config, **ids}), folder)
    talks = []
    for remembers in (True, False):
        arguments = ["--model", folder, "--json", "-n", "16", "--cache", "block_causal"]
        monkeypatch.setattr(sys, "argv", ["dllm", "chat", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"copy: {'tom, ann, ' * 6}tom.\n" * 3))
        if not remembers:
            monkeypatch.setattr("dllm.cli.chat.PromptMemory", lambda: None)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        talks.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    quick, plain = talks
    assert [turn["reply"] for turn in quick] == [turn["reply"] for turn in plain]
    fed = [[turn["metrics"]["tokens_fed"] for turn in turns] for turns in (quick, plain)]
    assert fed[0][0] == fed[1][0]
    assert all(less < more for less, more in zip(fed[0][1:], fed[1][1:], strict=True))
