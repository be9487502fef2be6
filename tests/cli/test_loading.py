"""How much of the weights was read is shown on a terminal, and only where that takes long."""

from __future__ import annotations

import pytest

from dllm.cli.loading import Reading, load_model, placed


@pytest.mark.parametrize(
    ("terminal", "patience", "shown"),
    [("1", -1.0, True), ("1", 3600.0, False), ("", -1.0, False)],
)
def test_the_bar(
    terminal: str,
    patience: float,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", terminal)  # whether rich takes stderr for a terminal
    monkeypatch.setenv("TERM", "xterm")
    with Reading(patience) as reading:
        for read in (0, 2**30, 3 * 2**30):
            reading(read, 4 * 2**30)
    out = capsys.readouterr()
    assert out.out == ""
    assert ("reading weights" in out.err) == shown
    assert ("3.0/4.0 GiB" in out.err) == shown


def fail(*arguments: object) -> None:
    raise OSError("gone")


def test_a_bar_is_gone_when_loading_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("dllm.cli.loading.Reading", lambda: Reading(-1.0))
    monkeypatch.setattr("dllm.models.loading.dispatch", fail)
    with pytest.raises(OSError, match="gone"):
        load_model("tiny", None, placed("cpu", None, None, None))
    shown = capsys.readouterr().err
    assert "reading weights" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("reading weights")  # the cursor is back


def test_a_command_loads_what_it_was_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model("tiny", "float64", placed("cpu", None, None, None))
    assert (model.name, str(model.dtype)) == ("tiny", "torch.float64")
    assert capsys.readouterr().err == ""
