"""Of several lengths the best one: by hand, with a model whose logits are planted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.constraints import Hole, Regex, Template
from dllm.state.plan import StepPlan
from tests.support.models import random_prompts
from tests.support.numbered import numbered

NAME = "llada_gqa"


class Planted:
    """A model that gives the tokens of a hole probabilities by how many masks and 9s it has.

    A column gets token 9 with the probability of a table, by the hole's length, which is read off
    the row: all but the three given tokens. The rest goes to token 8.
    """

    def __init__(self, table: dict[int, float]) -> None:
        self.model, self.table = numbered(NAME), table

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: Any) -> Tensor:
        logits = self.model.forward(tokens, plan, store).fill_(-math.inf)
        seen = plan.attention_mask
        wide = torch.ones(tokens.shape) if seen is None else seen[:, 0]
        for row, length in enumerate(wide.sum(1).int().tolist()):
            share = self.table[length - 3]
            logits[row, :, 9], logits[row, :, 8] = math.log(share), math.log1p(-share)
        return logits


def planted(table: dict[int, float], **given: Any) -> Any:
    template = Template("1", Hole(tokens=tuple(table)), "2")
    model: Any = Planted(table)
    return dllm.generate(model, [[5]], template=template, **given)


def test_the_best_mean_log_probability_wins() -> None:
    table = {1: 0.6, 2: 0.7, 5: 0.9, 8: 0.8}
    out = planted(table)
    assert [one.lengths for one in out.tried[0]] == [(1,), (2,), (5,), (8,)]
    expected = [math.log(share) for share in table.values()]
    assert [one.score for one in out.tried[0]] == pytest.approx(expected, abs=1e-6)
    assert out.sequences == ((5, 1, 9, 9, 9, 9, 9, 2),)
    assert out.holes[0][0].tokens == (9,) * 5
    assert out.texts == ("1 9 9 9 9 9 2",)


def test_of_equal_ones_the_shortest_wins() -> None:
    assert planted({2: 0.75, 4: 0.75, 6: 0.7}).holes[0][0].tokens == (9, 9)


def test_the_sum_does_not_decide() -> None:
    """Five tokens of 0.9 are less probable together than one of 0.8."""
    out = planted({1: 0.8, 5: 0.9})
    assert 0.9**5 < 0.8
    assert len(out.holes[0][0].tokens) == 5


def test_the_models_own_probabilities_decide_whatever_is_drawn() -> None:
    """A drawn 8 has its own probability, not that of the temperature or of what is left."""
    seen = set()
    for seed in range(12):
        out = planted({1: 0.55, 3: 0.6}, temperature=2.0, seed=seed, forbidden_token_ids=(3,))
        model: Any = Planted({1: 0.55, 3: 0.6})
        running = dllm.stream(
            model,
            [[5]],
            template=Template("1", Hole(tokens=(1, 3)), "2"),
            temperature=2.0,
            seed=seed,
        )
        for _ in running:
            pass
        for one, tokens in zip(out.tried[0], running.canvas.tokens.tolist(), strict=True):
            length = one.lengths[0]
            share = {1: 0.55, 3: 0.6}[length]
            held = tokens[2 : 2 + length]
            mean = sum(math.log(share if token == 9 else 1 - share) for token in held) / length
            assert one.score == pytest.approx(mean, abs=1e-6)
            seen |= {*held}
    assert seen == {8, 9}


def test_each_token_is_read_with_all_other_halves_of_the_holes() -> None:
    """The two passes by hand: every second token masked, then the others."""
    model = numbered(NAME)
    template = Template("1", Hole(tokens=(3, 4)), "2 3", Hole(tokens=(2,)), "4")
    out = dllm.generate(model, [[5, 6]], template=template)
    running = dllm.stream(model, [[5, 6]], template=template)
    for _ in running:
        pass
    for row, one in enumerate(out.tried[0]):
        first, second = one.lengths
        ids = running.canvas.tokens[row, : 3 + first + 2 + second + 1].tolist()
        holes = [*range(3, 3 + first), *range(3 + first + 2, 3 + first + 2 + second)]
        total = 0.0
        for half in (holes[::2], holes[1::2]):
            masked = torch.tensor([ids])
            masked[0, half] = model.spec.mask_token_id
            columns = torch.arange(len(ids))[None]
            plan = StepPlan("refresh", columns, columns, len(ids))
            share = model.forward(masked, plan, None)[0].log_softmax(-1)
            total += sum(float(share[column, ids[column]]) for column in half)
        assert one.score == pytest.approx(total / len(holes), abs=1e-5)


def test_an_end_token_counts_and_what_follows_it_does_not() -> None:
    model = numbered(NAME)
    end = model.spec.eos_token_ids[0]

    class Ending(Planted):
        def forward(self, tokens: Tensor, plan: StepPlan, store: Any) -> Tensor:
            logits = super().forward(tokens, plan, store)
            second = plan.positions.gather(1, plan.logit_rows) == 4
            logits[second] = -math.inf
            logits[..., end][second], logits[..., 8][second] = math.log(0.6), math.log(0.4)
            return logits

    template = Template("1 2", Hole(tokens=(3, 6)))
    ending: Any = Ending({3: 0.7, 6: 0.8})
    out = dllm.generate(ending, [[5]], template=template, block_length=1)
    expected = [(math.log(share) + math.log(0.6)) / 2 for share in (0.7, 0.8)]
    assert [one.score for one in out.tried[0]] == pytest.approx(expected, abs=1e-6)
    assert out.holes[0][0].tokens == (9,)
    assert out.texts == ("1 2 9",)
    assert out.metrics.rows[0].finish_reason == "eos"


def test_work_of_all_lengths_is_counted() -> None:
    model, prompts = numbered(NAME), random_prompts(2)
    template = Template("1", Hole(tokens=(2, 3, 7)), "2")
    options: dict[str, Any] = {"scheduler": "fixed_quota:tokens_per_step=1"}
    out = dllm.generate(model, prompts, template=template, **options)
    for row in out.metrics.rows:
        assert row.forwards == 7  # of the longest, beside which the others were decoded
        assert row.row_forwards == 2 + 3 + 7
        assert row.prompt_tokens in map(len, prompts)
    # Seven passes of six rows, and four canvases of halves for each three rows' passes.
    assert out.metrics.num_forwards == 7 + 2
    assert out.metrics.rows_fed == 7 * 6 + 2 * 6
    one = dllm.generate(model, prompts, template=Template("1", Hole(tokens=7), "2"), **options)
    assert one.metrics.num_forwards == 7
    assert one.tried == ((), ())


def test_answers_are_finished_with_their_last_row() -> None:
    model, prompts = numbered(NAME), random_prompts(3)
    template = Template("1", Hole(tokens=(1, 6)), "2")
    options: dict[str, Any] = {"scheduler": "fixed_quota:tokens_per_step=1", "template": template}
    for batch_size in (None, 2):
        running = dllm.stream(model, prompts, batch_size=batch_size, **options)
        finished: list[int] = []
        assert running.num_answers == 3
        for event in running:
            assert set(event.prompts) <= {0, 1, 2}
            finished += event.finished
            if event.finished:
                part = running.rows(event.finished)
                assert all(len(one) == 2 for one in part.tried)
            for answer in range(3):
                assert ("126" in running.text(answer).split()) <= (answer not in finished)
        assert sorted(finished) == [0, 1, 2]
        out = running.output
        assert out.sequences == dllm.generate(model, prompts, **options).sequences
        assert [running.text(row) for row in range(3)] == list(out.texts or ())


def test_an_answer_that_is_not_finished_is_shown_as_the_first_of_its_rows() -> None:
    model = numbered(NAME)
    template = Template("1", Hole(tokens=(2, 6)), "2")
    running = dllm.stream(
        model, [[5]], template=template, scheduler="fixed_quota:tokens_per_step=1"
    )
    next(iter(running))
    out = running.output
    assert out.metrics.rows[0].finish_reason == "interrupted"
    assert len(out.sequences[0]) == 1 + 1 + 2 + 1
    assert out.tried == ((),)


def test_seeds_are_of_answers() -> None:
    model, prompts = numbered(NAME), random_prompts(2)
    options: dict[str, Any] = {"temperature": 1.0, "scheduler": "fixed_quota:tokens_per_step=1"}
    one = Template("1", Hole(tokens=6), "2")
    several = Template("1", Hole(tokens=(3, 6)), "2")
    plain = dllm.stream(model, prompts, template=one, seed=4, n=2, **options)
    tried = dllm.stream(model, prompts, template=several, seed=[4, 5, 6, 7], n=2, **options)
    for running in (plain, tried):
        for _ in running:
            pass
    longest = tried.canvas.tokens[1::2, : plain.canvas.layout.num_columns]
    for row, length in enumerate(plain.canvas.layout.lengths):
        assert longest[row, :length].equal(plain.canvas.tokens[row, :length])
    with pytest.raises(ValueError, match="3 seeds were given for 4 prompts"):
        dllm.generate(model, prompts, template=several, seed=[1, 2, 3], n=2, **options)


def test_constraints_and_lengths_go_together() -> None:
    model, question = dllm.load("tiny"), "write f(x): divide by 3."
    hole = Hole(Regex(" x (//|[*][*]) [0-9]"))
    template = Template("def f(x):\n    x =", hole, "\n    return x")
    out = dllm.generate(model, question, template=template)
    assert out.texts == ("def f(x):\n    x = x // 3\n    return x",)
    assert max(out.tried[0], key=lambda one: one.score).lengths == (5,)
    assert len(out.tried[0]) > 1
