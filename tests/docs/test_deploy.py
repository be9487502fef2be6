"""The files of `deploy/`: options that exist, times that fit, figures that are there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dllm
from dllm.cli.commands import parser_of
from dllm.serve.engine import Engine
from dllm.serve.measured import Measured
from dllm.serve.service import Limits
from tests.support import ROOT

DEPLOY = ROOT / "deploy"
GUIDE = ROOT / "docs" / "guides" / "deployment.md"
UNIT = (DEPLOY / "dllm.service").read_text(encoding="utf-8")
IMAGE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
ROUTER = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")


def options() -> set[str]:
    """The options of `dllm serve`."""
    return {name for parameter in parser_of("serve").params for name in parameter.opts}


def value(text: str, name: str) -> str:
    """Returns the value of a line `name=value`."""
    found = re.search(rf"^{name}=(.*)$", text, re.MULTILINE)
    assert found, f"no {name}"
    return found[1]


def command_lines() -> list[list[str]]:
    """Every argument list of `dllm serve` in the unit, the image and the guide."""
    lines = [shlex.split(value(UNIT, "ExecStart"))[2:]]
    lines += [json.loads(found) for found in re.findall(r"^CMD (\[.*\])$", IMAGE, re.MULTILINE)]
    runs = re.findall(r"docker run .* dllm:\w+ (.*)$", GUIDE.read_text("utf-8"), re.MULTILINE)
    return lines + [shlex.split(run) for run in runs]


def test_every_option_is_one_of_the_command() -> None:
    known, lines = options(), command_lines()
    assert len(lines) == 4
    for line in lines:
        named = [word for word in line if word.startswith("--")]
        assert named
        assert set(named) <= known


def test_the_container_runs_the_command_and_not_as_root() -> None:
    assert 'ENTRYPOINT ["dllm", "serve"]' in IMAGE
    stages = IMAGE.split("\nFROM ")[1:]
    targets = [stage for stage in stages if not stage.startswith("python")]
    assert [stage.partition("\n")[0] for stage in targets] == ["base AS cpu", "base AS cuda"]
    for stage in targets:
        lines = [line for line in stage.splitlines() if line and not line.startswith("#")]
        assert lines[-1] == "USER dllm"
        copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
        assert {"pyproject.toml", "README.md", "LICENSE", "dllm", "eval"} <= copied
        assert all((ROOT / name).exists() for name in copied)
        kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        assert {f"!{name}" for name in copied} <= {*kept}, "the build would not see it"


def test_who_ends_a_server_waits_longer_than_the_server() -> None:
    grace = float(value(UNIT, "ExecStart").partition("--grace ")[2].split()[0])
    assert float(value(UNIT, "TimeoutStopSec")) > grace
    for seconds in re.findall(r"--stop-timeout (\d+)", GUIDE.read_text("utf-8")):
        assert float(seconds) > grace
    assert value(UNIT, "KillSignal") == "SIGTERM"
    assert "STOPSIGNAL SIGTERM" in IMAGE


def test_the_router_waits_longer_than_an_answer_may_take() -> None:
    found = re.search(r"proxy_read_timeout (\d+)s;", ROUTER)
    assert found
    assert float(found[1]) > Limits().answer_seconds
    body = re.search(r"client_max_body_size (\d+)m;", ROUTER)
    assert body
    assert int(body[1]) * 2**20 >= Limits().max_body
    assert "proxy_buffering off;" in ROUTER


def test_the_figures_of_the_guide_are_measured(tiny: dllm.HostedModel) -> None:
    text = Measured().text(Engine(tiny))[0].decode()
    named = set(re.findall(r"\bdllm_[a-z_]+", GUIDE.read_text("utf-8")))
    assert len(named) > 6
    assert {name for name in named if name.removesuffix("_bucket") not in text} == set()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "dllm-checked.service"
    path.write_text(UNIT.replace("/opt/dllm/bin/dllm", sys.executable), encoding="utf-8")
    verify = ("systemd-analyze", "verify", "--man=no", str(path))
    done = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert path.name not in done.stderr
