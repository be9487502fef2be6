"""Problems of any lengths: little of what a run feeds is padding, and its answers stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.eval.report.tables import notes_of
from dllm.eval.run.results import read_results
from dllm.eval.run.summary import summarise
from dllm.eval.tasks.task import Problem
from tests.support.lengths import CACHES, LENGTHS, shuffled
from tests.support.runs import Counting, run_of

OPTIONS: dict[str, Any] = {"scheduler": "threshold:0.5", "max_new_tokens": 8, "block_length": 4}


def problems(name: str) -> list[Problem]:
    """Returns problems whose prompts have the lengths of a distribution."""
    words = [" ".join([chr(ord("a") + row % 26)] * n) for row, n in enumerate(shuffled(name))]
    return [Problem(f"p{row}", text, "", "") for row, text in enumerate(words)]


@pytest.mark.parametrize("rows", [5, 32])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", LENGTHS)
def test_a_report_says_that_a_tenth_is_padding_at_most(
    tiny: dllm.HostedModel, name: str, cache: str, rows: int
) -> None:
    asked = problems(name)
    found = list(run_of(tiny, rows, **{**OPTIONS, "cache": cache}).results(asked, None))
    assert {result.id for result in found} == {problem.id for problem in asked}
    summary = summarise(found)
    assert summary.padding is not None
    assert 0 <= summary.padding < 0.1
    assert any("was padding" in note for note in notes_of(summary))


def test_few_problems_are_no_exception(tiny: dllm.HostedModel) -> None:
    found = list(run_of(tiny, 32, **OPTIONS).results(problems("uniform")[:12], None))
    assert (summarise(found).padding or 0) < 0.1


@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_a_run_that_was_stopped_gives_the_file_of_one_that_was_not(
    tiny: dllm.HostedModel, cache: str, tmp_path: Path
) -> None:
    """Lines come as rows end; each is that of a run without a stop but for what rows share."""
    asked, whole, stopped = problems("uniform"), tmp_path / "whole", tmp_path / "stopped"
    model: Any = Counting(tiny)
    run = run_of(model, 8, **{**OPTIONS, "cache": cache})
    list(run.results(asked, whole))
    until = [model.passes // 3]

    def before(passes: int) -> None:
        if until and passes - begun == until[0]:
            until.clear()
            raise KeyboardInterrupt

    begun, model.before = model.passes, before
    with pytest.raises(KeyboardInterrupt):
        list(run.results(asked, stopped))
    kept = stopped.read_text()
    assert 5 < len(kept.splitlines()) < 40
    list(run.results(asked, stopped))
    assert stopped.read_text().startswith(kept)
    assert sum(map(bool, stopped.read_text().splitlines())) == len(asked)
    ours, theirs = read_results(stopped), read_results(whole)
    shared: dict[str, Any] = dict.fromkeys(("seconds", "tokens_fed"), 0.0)
    shared |= dict.fromkeys(
        ("rows_fed", "tokens_needed", "flops", "steps", "prefill_seconds", "latency"), None
    )
    shared |= {"finished": None, "start": ""}
    assert {name: replace(one, **shared) for name, one in ours.items()} == {
        name: replace(one, **shared) for name, one in theirs.items()
    }
