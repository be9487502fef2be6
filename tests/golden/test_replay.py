"""Parity: every recorded run of an official implementation is reproduced, commit by commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden.replay import KNOWN_DIFFERENCES, NOT_END_TO_END, STEPS, main, method_of, replay
from tests.support import GOLDEN


def recorded() -> list[Any]:
    """Returns all recordings; fast is the shortest from 8 steps up, of each method and file."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in sorted((GOLDEN / "cases").glob("*.json")):
        if file.stem in STEPS:
            continue
        content = json.loads(file.read_text())
        for case in content["cases"]:
            if case["method"] not in NOT_END_TO_END:
                given = {"eot_id": content.get("eot_id"), **case}
                groups.setdefault((file.stem, case["method"]), []).append(given)
    return [
        pytest.param(case, marks=() if case is shortest else pytest.mark.slow, id=name)
        for (file, _), cases in groups.items()
        for known in [[case for case in cases if case["id"] not in KNOWN_DIFFERENCES]]
        for shortest in [min(known or cases, key=length)]
        for case in cases
        for name in [f"{file}-{case['id']}"]
    ]


def length(case: dict[str, Any]) -> tuple[bool, int]:
    """Returns what to order recordings by: first those long enough to show a method at work."""
    return len(case["trace"]) < 8, len(case["trace"])


def test_recordings_are_there() -> None:
    assert len(recorded()) >= 150


@pytest.mark.parametrize("case", recorded())
def test_replay(case: dict[str, Any]) -> None:
    assert method_of(case), f"{case['method']} has no replay"
    difference = replay(case, GOLDEN / "models")
    if case["id"] in KNOWN_DIFFERENCES:
        assert difference is not None, "reproduced now: take it off the list"
    else:
        assert difference is None, difference


def test_forwards_behind_the_end_of_an_answer_are_not_compared() -> None:
    """The pipeline goes on where the answer is whole, until it commits an end token again."""
    cases = json.loads((GOLDEN / "cases" / "llada2_diffusers_pipeline.json").read_text())["cases"]
    name = "dl2_15_block_causal_p11_b8_g45_s8_th0.7_edNone_post16_eos"
    case = next(case for case in cases if case["id"] == name)
    end = case["final"].index(case["args"]["eos_token_id"], len(case["prompt"]))
    for column, differs in ((end + 1, False), (end, True)):
        step = {**case["trace"][-1], "step": len(case["trace"]), "commits": [[column, 65]]}
        further = {**case, "trace": [*case["trace"], step]}
        assert (replay(further, GOLDEN / "models") is not None) == differs


def test_command_line_reports_and_fails_on_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((GOLDEN / "cases" / "llada_vanilla.json").read_text())
    content["cases"] = content["cases"][:2]
    content["cases"][1]["final"][-1] += 1
    (tmp_path / "broken.json").write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["replay.py", "--cases", str(tmp_path / "broken.json")])
    assert main() == 1
    assert "FAILED  1/2" in capsys.readouterr().out


@pytest.mark.slow
def test_command_line_runs_as_a_script(tmp_path: Path) -> None:
    content = json.loads((GOLDEN / "cases" / "llada_vanilla.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps({**content, "cases": content["cases"][:1]}))
    command = [sys.executable, str(GOLDEN / "replay.py"), "--cases", str(tmp_path / "one.json")]
    subprocess.run(command, check=True)
