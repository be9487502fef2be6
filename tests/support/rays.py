"""A Ray cluster of a few processes on this machine, ended with everything that it started."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import ray
from ray import serve

from tests.support import ROOT

LONG = 90.0  # seconds after which a test gives up
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),  # of its processes: this tree and no installed one
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # which would write a token into the home folder
    "RAY_DEDUP_LOGS": "0",
}


@contextmanager
def cluster() -> Iterator[str]:
    """Yields the address of a cluster's HTTP proxy; raises where a process of it is left."""
    before, port = descendants(), _free_port()
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # its sockets' names must be short
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        try:
            ray.init(
                num_cpus=4,
                include_dashboard=False,
                object_store_memory=80_000_000,  # about the least that it takes
                log_to_driver=False,
                _temp_dir=folder,
            )
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
    until = monotonic() + LONG
    while left := descendants() - before:
        assert monotonic() < until, f"processes are left: {left}"
        sleep(0.2)


def descendants() -> set[int]:
    """Returns the processes that this one started, and those that they did."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def replicas() -> list[str]:
    """Returns the names of the actors that answer."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return [one["name"] for one in named if one["name"].startswith("SERVE_REPLICA")]


def kill(replica: str) -> None:
    """Ends the process of a replica at once."""
    ray.kill(ray.get_actor(replica, namespace="serve"), no_restart=True)


def wait_for(count: int, without: str = "") -> None:
    """Waits until so many replicas answer, a certain one not among them."""
    until = monotonic() + LONG
    while True:
        deployment = serve.status().applications["default"].deployments["dllm"]
        states: dict[Any, int] = {**deployment.replica_states}
        if states == {"RUNNING": count} and without not in replicas():
            return
        assert monotonic() < until, f"{states}"
        sleep(0.2)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])
