"""Lengths by CAL: the walk by hand, its probes with planted logits, and what they cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.constraints import Hole, Regex, Template
from dllm.infilling.cal import LENGTHS, bias, climb
from dllm.state.plan import StepPlan
from tests.support.models import family_model
from tests.support.numbered import numbered

NAME = "llada_gqa"
CAL = Template("1", Hole(tokens="cal"), "2")


class Planted:
    """A model whose best token has a probability by a hole's length, of others all tokens alike.

    The length is read off the row: all but the three given tokens.
    """

    def __init__(self, shares: dict[int, float]) -> None:
        self.model, self.shares = numbered(NAME), shares

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: Any) -> Tensor:
        logits = self.model.forward(tokens, plan, store).fill_(0.0)
        seen = plan.attention_mask
        wide = torch.ones(tokens.shape) if seen is None else seen[:, 0]
        for row, columns in enumerate(wide.sum(1).int().tolist()):
            if (share := self.shares.get(columns - 3)) is not None:
                logits[row] = -math.inf
                logits[row, :, 9], logits[row, :, 8] = math.log(share), math.log1p(-share)
        return logits


def scores(**peaks: float) -> dict[int, float]:
    return {length: peaks.get(f"at{length}", 0.0) for length in LENGTHS}


def test_the_bias_is_the_authors() -> None:
    assert bias(1) == pytest.approx(0.170333 + 0.527388 + 0.24, abs=1e-6)
    assert bias(8) == pytest.approx(0.000001 + 0.346518 + 0.24, abs=1e-6)
    assert bias(64) == pytest.approx(0.012036 + 0.24, abs=1e-6)


@pytest.mark.parametrize(
    ("peaks", "length"),
    [
        ({}, 8),  # no length is better than the first
        ({"at9": 1.0}, 9),
        ({"at11": 1.0}, 11),  # three that are no better, then one that is
        ({"at12": 1.0}, 12),  # the fourth is better: the walk stops after four that are not
        ({"at13": 1.0}, 8),  # 9 to 12 are no better
        ({"at12": 1.0, "at16": 2.0}, 16),  # the count begins anew
        ({"at12": 1.0, "at17": 2.0}, 12),
        ({"at4": 1.0}, 4),  # downwards the count begins anew, too
        ({"at3": 1.0}, 8),
        ({"at12": 1.0, "at5": 2.0}, 5),  # of both ways the better one
        ({"at12": 2.0, "at5": 1.0}, 12),
        ({"at12": 1.0, "at5": 1.0}, 12),  # downwards it must be better than upwards
        ({"at64": 1.0}, 8),
    ],
)
def test_the_walk(peaks: dict[str, float], length: int) -> None:
    assert climb(scores(**peaks)) == length


def test_the_walk_ends_at_both_ends() -> None:
    assert climb({length: float(length) for length in LENGTHS}) == 64
    assert climb({length: -float(length) for length in LENGTHS}) == 1


def test_the_highest_quotient_is_decoded() -> None:
    """6 has the highest confidence, and 10 with 0.93 / 0.547 = 1.70 the highest for its length."""
    shares = {5: 0.9, 6: 0.95, 10: 0.93}
    model: Any = Planted(shares)
    out = dllm.generate(model, [[5]], template=CAL, scheduler="fixed_quota:1")
    assert [one.lengths for one in out.tried[0]] == [(length,) for length in LENGTHS]
    found = {one.lengths[0]: one.score for one in out.tried[0]}
    for length in LENGTHS:
        expected = shares.get(length, 1 / model.spec.vocab_size) / bias(length)
        assert found[length] == pytest.approx(expected, abs=1e-5)
    assert found[10] == pytest.approx(1.699, abs=1e-3)
    assert out.sequences[0] == (5, 1, *(9,) * 10, 2)


def test_probes_are_counted_apart() -> None:
    model = numbered(NAME)
    out = dllm.generate(model, [[5], [6, 7]], template=CAL)
    lengths = [len(holes[0].tokens) for holes in out.holes]
    for prompt, length, found in zip([[5], [6, 7]], lengths, range(2), strict=True):
        alone = dllm.generate(model, [prompt], template=Template("1", Hole(tokens=length), "2"))
        assert out.sequences[found] == alone.sequences[0]
        assert out.metrics.rows[found] == alone.metrics.rows[0]
    assert out.metrics.forwards["probe"] == 2  # one of each prompt
    templates = [Template("1", Hole(tokens=length), "2") for length in lengths]
    known = dllm.generate(model, [[5], [6, 7]], template=templates).metrics
    assert {**known.forwards, "probe": 2} == out.metrics.forwards
    assert out.metrics.rows_fed == 2 * 64 + known.rows_fed
    assert out.metrics.fed[:2] == (1 + 1 + 64 + 1, 2 + 1 + 64 + 1)


def test_each_probe_is_the_hole_of_that_length_alone() -> None:
    model = numbered(NAME)
    out = dllm.generate(model, [[5, 6]], template=CAL)
    mask = model.spec.mask_token_id
    for length in (1, 2, 8, 33, 64):
        row = torch.tensor([[5, 6, 1, *[mask] * length, 2]])
        columns = torch.arange(row.shape[1])[None]
        plan = StepPlan("refresh", columns, columns, row.shape[1])
        logits = model.forward(row, plan, None)[0, 3 : 3 + length]
        top = logits.softmax(-1).amax(-1)
        assert out.tried[0][length - 1].score == pytest.approx(
            float(top.mean()) / bias(length), rel=1e-5
        )


def test_other_templates_of_the_batch_are_as_they_are() -> None:
    model = numbered(NAME)
    fixed = Template("1", Hole(tokens=3), "2", Hole(tokens=2))
    out = dllm.generate(model, [[5], [6]], template=[CAL, fixed])
    alone = dllm.generate(model, [[6]], template=fixed)
    assert out.sequences[1] == alone.sequences[0]
    assert out.tried[1] == ()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (Template("1", Hole(tokens="cal"), "2", Hole(tokens=3)), "has 2 holes, and tokens='cal'"),
        (Template("1", Hole(Regex("[0-9]"), tokens="cal"), "2"), "has the constraint .*a single"),
    ],
)
def test_what_the_rule_says_nothing_of_is_refused(template: Template, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dllm.generate(numbered(NAME), [[5]], template=template)


def test_models_that_see_no_text_behind_refuse() -> None:
    blind = replace(family_model("sdar"), tokenizer=numbered(NAME).tokenizer)
    with pytest.raises(ValueError, match="cannot see"):
        dllm.generate(blind, [[5]], template=CAL)
    with pytest.raises(ValueError, match="holes of several lengths"):
        dllm.generate(blind, [[5]], template=Template("1", Hole(tokens="cal")))
