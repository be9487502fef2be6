"""What commands say of themselves, and what they show of what is not theirs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.table import Table
from rich.text import Text

import dllm
from dllm.cli.commands import SUMMARIES, parser_of
from dllm.cli.shown import Terminal, say
from tests.support.commands import Inside

COMMANDS: dict[str, Any] = {name: parser_of(name) for name in SUMMARIES}
TIMES = {"verify": 3, "cache-error": 0, "eval": 3}  # figures that no two runs share
HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\u202ee\rf"


@pytest.mark.parametrize("columns", [40, 60, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_every_option_whole(inside: Inside, name: str, columns: int) -> None:
    said = inside(name, "--help", columns=columns).stdout
    for parameter in COMMANDS[name].params:
        for option in parameter.opts:
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", said), option
    # What cannot be broken, a long name for one, may stand out.
    assert max(len(line) for line in said.splitlines() if " " in line.strip()) <= columns + 16


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_default(inside: Inside, name: str) -> None:
    said = " ".join(inside(name, "--help").stdout.split())
    context = typer.Context(COMMANDS[name])
    given = [one for one in COMMANDS[name].params if one.param_type_name == "option"]
    records = [one.get_help_record(context)[1] for one in given if not one.is_flag]
    assert [text for text in records if "[default: " not in text and "required]" not in text] == []
    assert all(" ".join(text.split()) in said for text in records)


def test_the_version_is_that_of_the_package(inside: Inside) -> None:
    assert inside("--version").stdout == f"dllm {dllm.__version__}\n"
    said = inside("--help").stdout
    assert "--install-completion" in said
    assert "--show-completion" in said


@pytest.mark.slow
def test_completion_names_commands_and_options() -> None:
    script = "import os, sys; sys.argv = ['dllm']; from dllm.cli import main; main()"
    environment = {"_DLLM_COMPLETE": "complete_bash", "COMP_WORDS": "dllm gen", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.stdout.split() == ["generate"], done.stderr


def test_nothing_that_is_shown_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[b]head")
    table.add_row(Text(HOSTILE))
    terminal = Terminal()
    terminal.print(HOSTILE, markup=False)
    terminal.print(Text.assemble((HOSTILE, "bold"), "tail"), table)
    say(HOSTILE)
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert not set(text) & set("\x1b\x07\x9b\u202e\r")
    assert said.out.count("a␛]0;title") == 3
    assert "⟨U+202E⟩" in said.err
    assert ":smile:" in _printed(":smile:", capsys)


def _printed(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    Terminal().print(text, markup=False)
    return capsys.readouterr().out


@pytest.mark.few(1)
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_ctrl_c_while_torch_is_imported(seconds: float) -> None:
    # A job in the background of a script ignores Ctrl-C, and so would this one.
    listening = ["env", "--default-signal=INT", sys.executable, "-m", "dllm", "chat"]
    process = subprocess.Popen(
        listening,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate("", timeout=60)
    assert (process.returncode, out, error) == (130, "", "interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "--limit", "2"],
        ["cache-error", "-c", "dual", "-c", "prefix", "--limit", "2"],
        ["eval", "-s", "fixed_quota", "-s", "threshold:0.9", "-c", "dual", "--limit", "2"],
        ["eval", "--schedulers", "lineup.yaml", "--limit", "2"],
    ],
    ids=" ".join,
)
def test_figures_are_whole_in_a_narrow_terminal(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lineup.yaml").write_text("- fixed_quota\n- threshold:0.9\n", encoding="utf-8")
    wide = inside(*arguments, columns=200).stdout
    for columns in (60, 40):
        narrow = inside(*arguments, columns=columns).stdout
        assert "\N{HORIZONTAL ELLIPSIS}" not in narrow
        # Times differ from run to run; what is counted does not.
        figures = [
            set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?%?(?![\w.])", text)) for text in (wide, narrow)
        ]
        lost = figures[0] - figures[1]
        assert len(lost) <= TIMES[arguments[0]]
