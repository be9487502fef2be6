"""Whether weights fit is asked before they are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dllm
from dllm.models import memory
from dllm.models.loading import files, weights
from dllm.models.loading.empty import empty_network
from dllm.models.loading.room import Room
from dllm.models.memory import available
from tests.support import GOLDEN
from tests.support.models import golden_model

FOLDER = GOLDEN / "models" / "llada_gqa"
CPU = torch.device("cpu")
SIZE = sum(weight.nbytes for weight in golden_model("llada_gqa", "float32").network.parameters())
GIB = 2**30


def free(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(memory, "available", lambda device: size)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a weight is an error."""

    def fail(*args: Any) -> Any:
        pytest.fail("weights were read")

    monkeypatch.setattr(weights, "stream_tensors", fail)


@pytest.mark.usefixtures("unread")
def test_weights_that_do_not_fit_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, SIZE // 2)
    with pytest.raises(dllm.NotEnoughMemoryError) as caught:
        dllm.load(FOLDER, dtype="float32")
    text = str(caught.value)
    size, half = memory.readable(SIZE), memory.readable(SIZE // 2)
    assert f"in float32 takes {size} on cpu and {size} while it is read, and {half} can" in text
    assert "bfloat16" in text
    assert "speed='int8'" in text
    assert "device_map" in text
    assert caught.value.partial is None


def test_a_narrower_dtype_fits_where_a_wider_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, SIZE * 3 // 4)
    with pytest.raises(dllm.NotEnoughMemoryError):
        dllm.load(FOLDER, dtype="float32")
    assert dllm.load(FOLDER, dtype="bfloat16").dtype == torch.bfloat16


def test_little_that_is_left_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free(monkeypatch, SIZE)
    dllm.load(FOLDER, dtype="float32")
    (line,) = caplog.messages
    assert "little is left to decode with" in line
    caplog.clear()
    free(monkeypatch, 2 * SIZE)
    dllm.load(FOLDER, dtype="float32")
    free(monkeypatch, None)  # where nobody says
    dllm.load(FOLDER, dtype="float32")
    assert not caplog.messages


@pytest.mark.parametrize("said", ["DefaultCPUAllocator: not enough memory: you tried", ""])
def test_memory_that_runs_out_while_reading(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*args: Any) -> Any:
        raise RuntimeError(said) if said else MemoryError

    monkeypatch.setattr(weights, "stream_tensors", short)
    with pytest.raises(dllm.NotEnoughMemoryError, match=r"ran out while .* was read in float32"):
        dllm.load(FOLDER, dtype="float32")


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("shapes differ")


def test_other_errors_while_reading_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "stream_tensors", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        dllm.load(FOLDER, dtype="float32")


def test_needs_are_those_of_each_device_and_way() -> None:
    network = empty_network(golden_model("llada_gqa").network.config).to(torch.float32)
    (need,) = Room.of("one", network, {"": "cpu"}, ()).needs.values()
    assert (need.weights, need.reading) == (SIZE, 0)
    parts = Room.of("two", network, {"": "cpu", "blocks": "meta"}, ()).needs
    blocks = sum(weight.numel() for weight in network.blocks.parameters()) * 4
    assert {str(where): need.weights for where, need in parts.items()} == {
        "cpu": SIZE - blocks,
        "meta": blocks,
    }
    fused, packed, rounded = (
        Room.of(way, network, {"": "cpu"}, [way]).needs[CPU] for way in ("fused", "packed", "int8")
    )
    assert fused.weights == SIZE
    assert 0 < fused.reading < SIZE
    assert SIZE < packed.weights < 2 * SIZE
    assert rounded.weights < SIZE


def group(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def told(monkeypatch: pytest.MonkeyPatch, root: Path, own: str) -> int | None:
    """Returns what can be had where /proc and /sys say what is written under a folder."""
    (root / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\n")
    (root / "cgroup").write_text(own)
    monkeypatch.setattr(memory, "MEMINFO", root / "meminfo")
    monkeypatch.setattr(memory, "OWN_GROUP", root / "cgroup")
    monkeypatch.setattr(memory, "GROUPS", root / "fs")
    monkeypatch.setattr(memory, "OWN_LIMITS", root / "limits")
    monkeypatch.setattr(memory, "OWN_STATUS", root / "status")
    return available(CPU)


STAT = "anon 5\ninactive_file 268435456\ntotal_inactive_file 268435456\n"


def test_limits_of_version_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = "0::/slurm/job_7/step\n"
    job = tmp_path / "fs" / "slurm" / "job_7"
    group(job / "step", {"memory.max": "max\n", "memory.current": "1\n"})
    assert told(monkeypatch, tmp_path, own) == 4 * GIB  # the machine's alone
    files = {"memory.max": f"{2 * GIB}\n", "memory.current": f"{GIB}\n", "memory.stat": STAT}
    for name, text in files.items():
        (job / name).write_text(text)  # of the group around it
    assert told(monkeypatch, tmp_path, own) == GIB + GIB // 4
    (job / "memory.current").write_text(f"{3 * GIB}\n")
    assert told(monkeypatch, tmp_path, own) == 0


def test_limits_of_version_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = "5:cpu,cpuacct:/other\n4:memory:/docker/abc\n1:name=systemd:/x\n"
    files = {
        "memory.limit_in_bytes": f"{3 * GIB}",
        "memory.usage_in_bytes": f"{GIB}",
        "memory.stat": STAT,
    }
    group(tmp_path / "fs" / "memory" / "docker" / "abc", files)
    group(tmp_path / "fs" / "other", {"memory.max": "5", "memory.current": "1"})
    assert told(monkeypatch, tmp_path, own) == 2 * GIB + GIB // 4


def test_a_container_sees_its_own_group_as_the_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group(tmp_path / "fs", {"memory.max": f"{GIB}", "memory.current": "1024"})
    assert told(monkeypatch, tmp_path, "0::/\n") == GIB - 1024
    (tmp_path / "fs" / "memory.max").write_text("max")
    assert told(monkeypatch, tmp_path, "0::/\n") == 4 * GIB


LIMITS = "Limit  Soft Limit  Hard Limit  Units\nMax cpu time  unlimited  unlimited  seconds\n"


def test_a_limit_of_the_process_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tone: two\nVmPeak:\t 9 kB\nVmSize:\t 1048576 kB\n")
    (tmp_path / "limits").write_text(f"{LIMITS}Max address space  unlimited  unlimited  bytes\n")
    assert told(monkeypatch, tmp_path, "0::/\n") == 4 * GIB
    line = f"Max address space         {3 * GIB}           unlimited            bytes \n"
    (tmp_path / "limits").write_text(LIMITS + line)
    assert told(monkeypatch, tmp_path, "0::/\n") == 2 * GIB
    (tmp_path / "status").unlink()
    assert told(monkeypatch, tmp_path, "0::/\n") == 4 * GIB


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="Linux lists the limits")
def test_a_real_limit_of_the_process() -> None:
    code = """
import resource, torch
from dllm.models.memory import available
before = available(torch.device("cpu"))
resource.setrlimit(resource.RLIMIT_AS, (2**40, resource.RLIM_INFINITY))
assert available(torch.device("cpu")) <= before
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
assert 2**25 < available(torch.device("cpu")) <= 2**26
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_file_that_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("unable to mmap 5 bytes from file: Cannot allocate memory (12)")

    monkeypatch.setattr(files, "safe_open", short)
    with pytest.raises(dllm.NotEnoughMemoryError, match=r"safetensors of .* KiB cannot be mapped"):
        dllm.load(FOLDER)
    monkeypatch.setattr(files, "safe_open", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        dllm.load(FOLDER)
