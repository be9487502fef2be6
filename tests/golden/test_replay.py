"""Parity: every recorded run of an official implementation is reproduced, commit by commit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.golden.replay import KNOWN_DIFFERENCES, NOT_END_TO_END, main, method_of, replay
from tests.support import GOLDEN


def recorded() -> list[Any]:
    """Returns all recordings; fast is each sixth one of a method on a model, with the first."""
    cases, seen = [], Counter[tuple[str, str, str]]()
    for file in sorted((GOLDEN / "cases").glob("*.json")):
        content = json.loads(file.read_text())
        for case in content["cases"]:
            if case["method"] in NOT_END_TO_END:
                continue
            given = {"eot_id": content.get("eot_id"), **case}
            group = file.stem, case["method"], case["model"]
            marks = [pytest.mark.slow] * (seen[group] % 6 > 0)
            cases.append(pytest.param(given, marks=marks, id=f"{file.stem}-{case['id']}"))
            seen[group] += 1
    return cases


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
