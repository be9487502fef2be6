"""Thousands of requests, after which there is nothing more than after the first of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

import dllm
from dllm.serve.engine import Engine
from dllm.serve.job import Job
from dllm.serve.service import Service
from dllm.serve.wave import Wave
from dllm.state.canvas import Canvas
from tests.support.serving import BASE, LONG, listening


async def ask(address: str, count: int) -> None:
    """Asks so many times, 16 at a time; every tenth hangs up, every seventh is wrong."""
    left = iter(range(count))

    async def client(http: httpx.AsyncClient) -> None:
        for number in left:
            body: dict[str, Any] = {"model": "tiny", "prompt": "count: 5.", "max_tokens": 8}
            body |= {"temperature": -1} if number % 7 == 0 else {"stream": number % 3 == 0}
            if number % 10:
                made = await http.post("/v1/completions", json=body)
                assert made.status_code == (400 if number % 7 == 0 else 200), made.text
                continue
            with contextlib.suppress(httpx.TimeoutException):
                await http.post("/v1/completions", json=body, timeout=0.005)

    async with httpx.AsyncClient(base_url=address, timeout=LONG) as http:
        await asyncio.gather(*(client(http) for _ in range(16)))


KINDS: dict[str, Any] = {"jobs": Job, "canvases": Canvas, "waves": Wave}


def counted() -> dict[str, int]:
    """Returns how many things there are in this process, of other tests too.

    In a function of its own: a list of all objects that is still named would keep them.
    """
    gc.collect()
    listed = gc.get_objects()
    found = {name: sum(isinstance(o, kind) for o in listed) for name, kind in KINDS.items()}
    tasks = sum(isinstance(o, asyncio.Task) and not o.done() for o in listed)
    return found | {"tasks": tasks}


def held(engine: Engine, others: dict[str, int]) -> dict[str, int]:
    """Returns how many things there are of each kind but others', once nobody waits for any."""
    until = monotonic() + LONG
    while True:
        found = {name: number - others[name] for name, number in counted().items()}
        if not any(found[name] > 0 for name in KINDS) or monotonic() > until:
            rows = engine.num_active + engine.num_waiting
            return found | {"threads": threading.active_count(), "rows": rows}
        sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_left_of_5000_requests(tiny: dllm.HostedModel) -> None:
    others, engine = counted(), Engine(tiny, max_waiting=64)
    with listening(Service(tiny, "tiny", engine, BASE)) as address:
        asyncio.run(ask(address, 1000))
        before, objects = held(engine, others), len(gc.get_objects())
        asyncio.run(ask(address, 4000))
        after = held(engine, others)
        assert not any(after[name] > 0 for name in ("rows", *KINDS)), after
        assert after["tasks"] <= before["tasks"] + 2, "connections that are being closed"
        assert after["threads"] <= max(before["threads"], 50)  # of a pool of at most 40
        assert len(gc.get_objects()) - objects < 4000, "one for each request"
