"""Two runs on the same problems: McNemar's test, the interval, and `dllm compare`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, chi2, norm
from typer.testing import CliRunner

from dllm.cli.main import app
from dllm.eval.compare.paired import Counts, choose, pair
from dllm.eval.run.results import Result, append
from dllm.eval.run.summary import wilson
from tests.support.runs import result

SETTINGS: dict[str, Any] = {
    "scheduler": {"name": "threshold", "threshold": 0.9},
    "cache": {"name": "none", "beyond_block": True},
}


def answers(right: str, run: str = "r", **changed: Any) -> dict[str, Result]:
    """Results from a text such as "+-+?": right, wrong, or not judged."""
    value = {"+": True, "-": False, "?": None}
    made = [
        result(str(n), run=run, correct=value[sign], settings=SETTINGS, **changed)
        for n, sign in enumerate(right)
    ]
    return {one.id: one for one in made}


@pytest.mark.parametrize("first", range(0, 13, 3))
@pytest.mark.parametrize("second", range(0, 13, 2))
def test_p_values_are_those_of_scipy(first: int, second: int) -> None:
    counts = Counts(40, first, second, 5)
    total = first + second
    exact = binomtest(first, total, 0.5).pvalue if total else 1.0
    assert counts.exact_p == pytest.approx(exact)
    statistic = max(abs(first - second) - 1, 0) ** 2 / total if total else 0.0
    assert counts.chi_square == pytest.approx(statistic)
    assert counts.chi_square_p == pytest.approx(chi2.sf(statistic, 1))


def test_worked_examples() -> None:
    # 8 against 1: 2 (1 + 9) / 2^9; (7 - 1)^2 / 9.
    counts = Counts(20, 8, 1, 11)
    assert counts.exact_p == 20 / 512
    assert counts.chi_square == 4.0
    assert counts.difference == 7 / 40
    # Large counts do not overflow, and the two p agree there.
    many = Counts(10_000, 1_100, 1_000, 10_000)
    assert many.exact_p == pytest.approx(many.chi_square_p, rel=0.02)
    with pytest.raises(ValueError, match="at least one problem"):
        Counts(0, 0, 0, 0)
    with pytest.raises(ValueError, match="none of them below 0"):
        Counts(3, -1, 0, 0)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (8, 1), (3, 3), (40, 0)])
def test_the_interval_is_walds_with_half_a_problem_more_in_each_cell(
    first: int, second: int
) -> None:
    low, high = Counts(20, first, second, 11).interval
    # As Wald's of a sample of -1, 0 and 1, from its mean and its variance.
    weights = np.array([20.5 + 11.5, first + 0.5, second + 0.5]) / (31 + first + second + 2)
    values = np.array([0, 1, -1])
    mean = float(weights @ values)
    spread = float(np.sqrt((weights @ values**2 - mean**2) / (33 + first + second)))
    z = norm.ppf(0.975)
    assert (low, high) == pytest.approx((mean - z * spread, mean + z * spread))
    assert -1 <= low < high <= 1


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    source = np.random.default_rng(0)
    held = []
    for share in source.dirichlet([4, 1, 1, 2], size=2000):
        counts = Counts(*map(int, source.multinomial(100, share)))
        low, high = counts.interval
        held.append(low <= share[1] - share[2] <= high)
    assert 0.94 < np.mean(held) < 0.975


def test_swapping_the_runs_turns_the_signs() -> None:
    for cells in product((0, 2, 7), repeat=3):
        counts = Counts(5, *cells)
        turned = Counts(5, cells[1], cells[0], cells[2])
        low, high = counts.interval
        assert turned.interval == pytest.approx((-high, -low))
        assert turned.exact_p == counts.exact_p
        assert turned.difference == -counts.difference
        assert low <= counts.difference <= high or not any(cells[:2])


def test_only_what_both_have_judged_is_compared() -> None:
    first, second = answers("++-?-+"), answers("+-+++?")
    second["99"] = replace(second["0"], id="99")
    pairing = pair(first, second)
    assert pairing.counts == Counts(1, 1, 2, 0)
    assert (pairing.wins, pairing.losses) == (("1",), ("2", "4"))
    assert (pairing.left_out_first, pairing.left_out_second) == (2, 3)
    assert (pairing.first.problems, pairing.second.problems) == (4, 4)
    assert pairing.first.accuracy == 0.5
    assert pairing.speed == 1.0
    assert not pairing.samples


def test_what_cannot_be_compared_is_an_error() -> None:
    with pytest.raises(ValueError, match="the first has 2, the second 1, and no id is in both"):
        pair(answers("++"), {"x": replace(answers("+")["0"], id="x")})
    with pytest.raises(ValueError, match="2 problems are in both, but none is judged in both"):
        pair(answers("++"), answers("??"))
    with pytest.raises(ValueError, match="problem '0' has another right answer"):
        pair(answers("++"), answers("++", answer="7"))


def test_of_several_samples_the_first_counts_and_other_words_are_told() -> None:
    second = answers("+-", prompt="please")
    second["0#1"] = replace(second["0"], id="0#1")
    pairing = pair(answers("++"), second)
    assert pairing.counts.total == 2
    assert pairing.samples
    assert pairing.other_prompts == 2


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    fast = {**SETTINGS, "cache": {**SETTINGS["cache"], "name": "elsewhere"}}
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    append(one, list(answers("++++++++---", "aaaa11").values()))
    made = {
        name: replace(r, settings=fast, forwards=1)
        for name, r in answers("-" * 8 + "++++", "bbbb22").items()
    }
    append(one, list(made.values()))
    append(two, list(made.values()))
    return one, two


def said(*arguments: str) -> str:
    done = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["compare", *arguments])
    assert done.exit_code == 0, done.exception
    return done.stdout


def test_the_command_says_all_of_it(files: tuple[Path, Path]) -> None:
    one, two = map(str, files)
    out = said(one, two, "--first", "aaaa", "--show")
    assert "11 common problems" in out
    assert "first less second: +45.5 points" in out
    assert "only the first is right: 8; only the second: 3; both: 0; neither: 0" in out
    assert f"exact p = {binomtest(3, 11, 0.5).pvalue:.3g}" in out
    assert "tokens per forward, second over first: 2.00" in out
    assert "left out, since not judged in both: 0 problems of the first, 1 of the second" in out
    assert "only the first: 0, 1, 2, 3, 4, 5, 6, 7\nonly the second: 8, 9, 10\n" in out
    low, high = wilson(8, 11)
    assert f"{100 * low:.0f}-{high:.0%}" in out
    assert (
        out.splitlines()[4:]
        == said(one, "--first", "aa", "--second", "bbbb", "--show").splitlines()[4:]
    )
    values = json.loads(said(one, two, "--first", "threshold / none", "--json"))
    assert values["counts"] == asdict(Counts(0, 8, 3, 0))
    assert values["losses"] == ["8", "9", "10"]
    assert values["exact_p"] == pytest.approx(binomtest(3, 11, 0.5).pvalue)
    assert values["difference_low"] < values["difference"] < values["difference_high"]


def test_runs_are_chosen_by_name_or_label(files: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = files
    assert choose(two, None, "--second")["0"].run == "bbbb22"
    assert choose(one, "elsewhere", "--first")["0"].run == "bbbb22"
    assert choose(one, "threshold / none", "--first")["0"].run == "aaaa11"
    for asked, why in ((None, "has 2 runs: name one by --first"), ("threshold", "fits 2 of the 2")):
        with pytest.raises(ValueError, match=f"{why}.*aaaa11 = threshold / none, 11 problems"):
            choose(one, asked, "--first")
    with pytest.raises(ValueError, match="--first 'zz' fits none of the 2 runs"):
        choose(one, "zz", "--first")
    with pytest.raises(ValueError, match="there is no results file"):
        choose(tmp_path / "no.jsonl", None, "--first")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no results yet"):
        choose(tmp_path / "empty.jsonl", None, "--first")
    same = CliRunner().invoke(app, ["compare", str(two)])
    assert "are the same run" in str(same.exception)
