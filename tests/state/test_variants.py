"""Methods that look at several blocks or several variants of a row: multi_block, ete, lopa."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm.models.config import ModelSpec
from dllm.schedulers.blocks_ahead import active_columns, decoded_fraction, open_columns
from dllm.schedulers.ete import ExploreThenExploit
from dllm.schedulers.lopa import LookAhead
from dllm.schedulers.multi_block import MultiBlock
from dllm.state.plan import StepPlan
from tests.support.models import MODELS, golden_model, random_prompts
from tests.support.views import MASK, layout_of, view_of

CACHES = ("none", "prefix", "dual")


def run(name: str, scheduler: Any, **options: Any) -> Any:
    given: dict[str, Any] = {"max_new_tokens": 16, "block_length": 4, "at_eos": "ignore", **options}
    prompts = random_prompts(given.pop("count", 3), seed=given.pop("prompt_seed", 0))
    return dllm.generate(golden_model(name), prompts, scheduler=scheduler, **given)


def story(out: Any) -> Any:
    return out.sequences, out.trace.commit_step.tolist()


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=2)
@given(data=st.data())
def test_without_look_ahead_all_equal_the_threshold(
    name: str, cache: str, data: st.DataObject
) -> None:
    threshold = data.draw(st.sampled_from([0.0, 0.31, 0.5, 0.9, 1.0]))
    options = {
        "block_length": data.draw(st.sampled_from([1, 4, 8, 16])),
        "count": data.draw(st.integers(1, 3)),
        "prompt_seed": data.draw(st.integers(0, 99)),
        "cache": cache,
    }
    expected = story(run(name, f"threshold:{threshold}", **options))
    for scheduler in (
        ExploreThenExploit(threshold=threshold, alternatives=0, blocks=1),
        LookAhead(threshold=threshold, branches=1, blocks=1),
        MultiBlock(threshold=threshold, blocks=1),
    ):
        assert story(run(name, scheduler, **options)) == expected
    if cache != "dual":  # it feeds the whole window, so its later blocks are fresher
        sequential = MultiBlock(
            threshold=threshold, blocks=2, add_threshold=1.0, active_threshold=1.0
        )
        assert story(run(name, sequential, **options)) == expected


@pytest.mark.parametrize("name", MODELS)
def test_a_wider_window_commits_beyond_the_block(name: str) -> None:
    narrow, wide = (run(name, f"ete:0.3,alternatives=0,blocks={n}") for n in (1, 3))
    assert sum(r.forwards for r in wide.metrics.rows) < sum(r.forwards for r in narrow.metrics.rows)
    for row, prompt in enumerate(random_prompts(3)):
        canvas = list(wide.trace.replay(row))
        for before, written in zip(canvas, wide.trace.commits(row), strict=False):
            first = before.index(126)
            block = len(prompt) + (first - len(prompt)) // 4 * 4
            assert all(block <= column < block + 12 for column, _ in written)


def test_the_pipeline_opens_blocks_as_they_fill() -> None:
    tokens = torch.tensor([[1, MASK, 1, 1, MASK, MASK, MASK, MASK, MASK, MASK, MASK, MASK]])
    block = torch.arange(12)[None] < 4
    layout = layout_of(1, 12)
    layout = type(layout)(**{**vars(layout), "block_length": 4})
    view = view_of(tokens == MASK, tokens=tokens, block=block, layout=layout)
    assert decoded_fraction(view, 3).tolist() == [[0.75, 0, 0]]
    expected = [False, True, False, False] + [True] * 4 + [False] * 4
    assert open_columns(view, 3, 0.5).tolist() == [expected]
    assert open_columns(view, 3, 0.8).tolist() == [[False, True] + [False] * 10]
    assert active_columns(view, 3, 0.5).tolist() == [[True] * 4 + [False] * 8]
    full = tokens.masked_fill(block, 1)
    view = view_of(full == MASK, tokens=full, block=block, layout=layout)
    assert active_columns(view, 3, 1.0).tolist() == [[False] * 4 + [True] * 4 + [False] * 4]


@dataclass(frozen=True)
class KeyModel:
    """A model whose every column is sure once column `key` holds `good`, and unsure before.

    What it proposes at `key` is likeliest `bad`, after which everything stays unsure.
    """

    name: str = "key"
    key: int = 3
    good: int = 5
    bad: int = 6
    tokenizer: None = None
    supports_cache: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            vocab_size=10, mask_token_id=9, pad_token_id=8, eos_token_ids=(8,), max_length=64
        )

    def new_store(self, num_rows: int, num_columns: int) -> Any:
        raise NotImplementedError("the model has no store")

    def forward(self, tokens: Tensor, plan: StepPlan, store: Any) -> Tensor:
        columns = plan.positions.gather(1, plan.logit_rows)
        unlocked = (tokens[:, self.key] == self.good)[:, None]
        logits = torch.zeros(*columns.shape, 10)
        logits[..., 1] = torch.where(unlocked, 9.0, 0.6) - 0.01 * columns
        at_key = (columns == self.key)[..., None]
        key_logits = torch.zeros(10)
        key_logits[self.bad], key_logits[self.good] = 1.0, 0.9
        return torch.where(at_key, key_logits, logits)


def toy(scheduler: Any) -> Any:
    return dllm.generate(
        KeyModel(), [[1, 2]], scheduler=scheduler, max_new_tokens=16, block_length=16
    )


def test_exploration_finds_the_token_that_settles_the_rest() -> None:
    plain = toy("threshold:0.9")
    explored = toy(ExploreThenExploit(explore="margin", blocks=1))
    assert plain.metrics.rows[0].forwards == 16
    assert explored.metrics.rows[0].forwards == 2
    assert explored.sequences[0][3] == KeyModel.good
    assert explored.metrics.rows[0].row_forwards == 1 + 4
    assert explored.metrics.rows_fed == 1 + 4
    committing = toy(ExploreThenExploit(explore="margin", blocks=1, mode="commit"))
    assert committing.sequences[0][3] == KeyModel.bad
    assert committing.metrics.rows_fed == committing.metrics.num_forwards


def test_what_cannot_win() -> None:
    timid = toy(ExploreThenExploit(explore="margin", blocks=1, likelihood_weight=1000.0))
    assert timid.sequences[0][3] != KeyModel.good
    implausible = toy(ExploreThenExploit(explore="margin", blocks=1, plausibility=0.95))
    assert implausible.sequences[0][3] != KeyModel.good


@pytest.mark.few(1)
@pytest.mark.parametrize("scheduler", ["ete:0.9", "lopa:0.9"])
@pytest.mark.parametrize("cache", CACHES)
def test_variants_cost_rows_and_save_rounds(scheduler: str, cache: str) -> None:
    plain = run("llada_gqa", "threshold:0.9", cache=cache).metrics
    looked = run("llada_gqa", scheduler, cache=cache).metrics
    if scheduler.startswith("lopa"):  # a variant is one token ahead even where none is sure
        assert looked.num_forwards < plain.num_forwards
    for row in looked.rows:
        assert row.forwards < row.row_forwards <= 4 * row.forwards
        assert row.raw_tokens == 16
    assert looked.rows_fed >= sum(row.row_forwards for row in looked.rows)
    assert all(row.row_forwards == row.forwards for row in plain.rows)


@pytest.mark.parametrize("scheduler", ["ete", "lopa"])
def test_variants_are_refused_where_they_have_no_meaning(scheduler: str) -> None:
    with pytest.raises(ValueError, match="must be 0"):
        run("llada_gqa", scheduler, temperature=0.5)
    with pytest.raises(ValueError, match="first_token='feed'"):
        run("dream_gqa", scheduler, cache={"name": "dual", "first_token": "force"})


def test_guidance_and_variants_go_together() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    options: dict[str, Any] = {"scheduler": "lopa:0.4", "max_new_tokens": 16, "block_length": 8}
    options |= {"guidance_scale": 0.5, "cache": "prefix"}
    together = dllm.generate(model, prompts, **options)
    alone = [dllm.generate(model, [prompt], **options).sequences[0] for prompt in prompts]
    assert list(together.sequences) == alone
