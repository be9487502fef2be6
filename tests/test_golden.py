"""Parity: every recorded run of an official implementation is reproduced, commit by commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GOLDEN
from tests.golden.replay import KNOWN_DIFFERENCES, NOT_END_TO_END, method_of, replay


def recorded() -> list[Any]:
    cases = []
    for file in sorted((GOLDEN / "cases").glob("*.json")):
        content = json.loads(file.read_text())
        for case in content["cases"]:
            if case["method"] in NOT_END_TO_END:
                continue
            given = {"eot_id": content.get("eot_id"), **case}
            cases.append(pytest.param(given, id=f"{file.stem}-{case['id']}"))
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


def test_command_line_reports_and_fails_on_a_difference(tmp_path: Path) -> None:
    content = json.loads((GOLDEN / "cases" / "llada_vanilla.json").read_text())
    content["cases"] = content["cases"][:2]
    content["cases"][1]["final"][-1] += 1
    (tmp_path / "broken.json").write_text(json.dumps(content))
    command = [sys.executable, str(GOLDEN / "replay.py"), "--cases", str(tmp_path / "broken.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAILED  1/2" in done.stdout
