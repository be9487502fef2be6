"""Looks at threads: more of them than cores, or threads that spin, are the usual slowness."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from dllm.doctor.finding import Finding, ok, warning

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of a period, or "max"


def threads(where: torch.device) -> Iterator[Finding]:
    """Yields threads against cores, and whether they spin while they wait."""
    count, cores = torch.get_num_threads(), usable_cores()
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    text = f"{count} for {cores} usable cores, OMP_WAIT_POLICY {policy}"
    if where.type != "cpu":
        yield ok("threads", text)
    elif count > cores:
        yield warning(
            "threads",
            f"{text}: more threads than cores wait for each other",
            f"export OMP_NUM_THREADS={max(int(cores), 1)}",
        )
    elif count > 1 and policy.lower() != "passive":
        yield warning(
            "threads",
            f"{text}: threads that spin while they wait make small models several times slower "
            "where cores are shared",
            "export OMP_WAIT_POLICY=passive",
        )
    else:
        yield ok("threads", text)


def usable_cores() -> float:
    """Returns the cores that this process may use, a container's share of them included."""
    known = hasattr(os, "sched_getaffinity")
    cores = float(len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1)
    if QUOTA.is_file():
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        cores = cores if quota == "max" else min(cores, int(quota) / int(period))
    return cores
