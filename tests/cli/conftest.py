"""What tests of commands share."""

from __future__ import annotations

import pytest

from tests.support.commands import Inside, runner


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Runs a command in this process."""
    return runner(monkeypatch, capsys)
