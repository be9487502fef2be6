"""What a search may try: knobs read off the schedulers, where it begins, and neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest

from dllm import schedulers
from dllm.tuning.knobs import knobs_of, presets_of
from dllm.tuning.space import Choice, Space
from tests.support.tuning import SPACE

_NOT = object()  # the value of an option that is not given
ALL = schedulers.registry.names()
OWN = '''
from dataclasses import dataclass
from typing import Annotated, Literal

from dllm.options import Probability, Range, TokenId
from dllm.schedulers.base import Candidates, Decision, Scheduler, View


@dataclass(frozen=True)
class Own(Scheduler):
    """A rule of the user's own."""

    stop: TokenId | None = None
    radius: Annotated[int, Range(0, 5)] = 4
    order: Literal["first", "last"] = "first"
    sure: Probability = 0.7
    eager: bool = False

    def select(self, candidates: Candidates, view: View) -> Decision:
        return Decision(candidates.confidence >= self.sure)
'''


def space_of(cost: str) -> Space:
    return Space.of(cost, ALL, 64, 16, 32)


@pytest.mark.parametrize("cost", ["forwards", "passes", "flops", "seconds"])
def test_only_what_can_lower_the_cost_is_varied(cost: str) -> None:
    first = space_of(cost).first()
    assert len(first) == len(set(first))
    assert (len({one.verifier for one in first}) > 1) is (cost in ("passes", "seconds"))
    assert (len({one.cache for one in first}) > 1) is (cost in ("flops", "seconds"))
    assert (len({one.batch_size for one in first}) > 1) is (cost == "seconds")
    assert len({one.block_length for one in first}) > 1


def test_every_registered_scheduler_is_in_the_space() -> None:
    assert {one.scheduler for one in space_of("forwards").first()} == set(ALL)


def refusal(given: str) -> str:
    """Returns why a scheduler refuses its options, empty if it does not."""
    try:
        schedulers.registry.create(given)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ALL)
def test_the_values_of_knobs_are_within_their_ranges(name: str) -> None:
    plain = Choice(name, (), 16)
    for knob in knobs_of(name):
        for value in (*knob.starts(64), *knob.beside(knob.default, 64)):
            given = plain.having({knob.name: value}).given["scheduler"]
            # What relates two options may refuse a value; its own range never does.
            assert f"{knob.name}={value} must be" not in refusal(given)


def test_what_trades_accuracy_for_cost_comes_first() -> None:
    firsts = {name: knobs[0].name for name in ALL if (knobs := knobs_of(name))}
    assert firsts["threshold"] == firsts["klass"] == firsts["info_gain"] == "threshold"
    assert firsts["factor"] == "factor"
    assert firsts["entropy_bound"] == "bound"
    assert firsts["sliding"] == "inner"
    assert firsts["dream"] == "steps"


def test_a_rule_of_the_users_own_is_described_by_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    name = f"{path}:Own"
    knobs = {knob.name: knob for knob in knobs_of(name)}
    assert list(knobs) == ["sure", "radius", "order"]
    assert knobs["sure"].starts(64) == [0.7, 0.3, 0.6, 0.9, 0.97, 0.99]
    assert knobs["radius"].beside(4, 64) == [2, 3, 5]
    assert knobs["order"].beside("first", 64) == ["last"]
    given = Choice(name, (), 16).having({"sure": 0.9, "radius": 4}).given["scheduler"]
    built = schedulers.registry.create(given)
    assert (getattr(built, "sure", None), getattr(built, "radius", None)) == (0.9, 4)


def test_care_goes_by_the_distance_to_one() -> None:
    knob = knobs_of("threshold")[0]
    assert knob.beside(0.96, 64) == [0.98, 0.97, 0.947, 0.92]
    assert knob.beside(0.2, 64) == [0.1, 0.15, 0.27, 0.4]
    steps = knobs_of("fixed_quota")[0]
    assert steps.starts(64) == [None, 32, 16]


def test_published_settings_are_begun_with() -> None:
    labels = {one.given["scheduler"] for one in space_of("forwards").first()}
    assert list(presets_of("hierarchical"))
    assert {"weights": "tiny"} in list(presets_of("context_filter"))  # a file that a preset names
    assert "klass:kl_threshold=0.001,threshold=0.9" not in labels  # 0.9 is the default
    assert "klass:kl_threshold=0.001" in labels
    assert "klass:kl_threshold=0.015,threshold=0.6" in labels


def test_an_option_at_its_default_is_left_out() -> None:
    one = Choice("threshold", (), 16).having({"threshold": 0.5})
    assert one.options == (("threshold", 0.5),)
    assert one.having({"threshold": 0.9}) == Choice("threshold", (), 16)


def test_neighbours_differ_in_one_part_and_are_new() -> None:
    first = SPACE.first()
    near = SPACE.near(first[:3], first, "a")
    assert near == SPACE.near(first[:3], first, "a")
    assert near != SPACE.near(first[:3], first, "b")
    assert not set(near) & set(first)
    for one in near:
        assert min(_parts(one, leader) for leader in first[:3]) == 1


def _parts(one: Choice, other: Choice) -> int:
    """Returns in how many parts two choices differ, each option being one."""
    mine, theirs = dict(one.options), dict(other.options)
    options = sum(mine.get(n, _NOT) != theirs.get(n, _NOT) for n in {*mine, *theirs})
    rest = ("scheduler", "block_length", "cache", "verifier", "batch_size")
    return options + sum(getattr(one, n) != getattr(other, n) for n in rest)
