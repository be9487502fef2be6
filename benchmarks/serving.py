"""A server under load: what its clients wait for, and how near it comes to one long list.

    python -m benchmarks.serving --clients 64 --seconds 60

Clients ask one request after the other, of several lengths and settings; a tenth of them hang up.
Every answer is compared with that of `dllm.generate` alone. Then the same prompts with one setting
go through the server and, in the same process, through `dllm.generate(batch_size=...)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import resource
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from time import perf_counter
from typing import Annotated, Any

import httpx
import typer

import dllm
from benchmarks.machine import machine, write
from benchmarks.options import Output
from dllm.eval.tasks.arithmetic import problems
from dllm.serve.engine import Engine
from dllm.serve.service import Service
from dllm.settings import Settings
from tests.support.serving import listening

KINDS: list[dict[str, Any]] = [
    {"max_tokens": 64, "dllm": {"scheduler": "threshold:0.9", "cache": "dual", "block_length": 16}},
    {"max_tokens": 48, "dllm": {"scheduler": "threshold:0.9", "cache": "none"}},
    {"max_tokens": 32, "temperature": 0.7, "dllm": {"scheduler": "fixed_quota:steps=16"}},
    {"max_tokens": 64, "dllm": {"scheduler": "prophet", "cache": "prefix", "block_length": 16}},
    {"max_tokens": 12, "dllm": {"scheduler": "threshold", "constraint": {"regex": "[0-9]+"}}},
]
LIMIT = 120.0  # seconds of one request


@dataclass
class Seen:
    """What clients saw."""

    answers: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    left: int = 0
    refused: int = 0


def main(
    clients: Annotated[int, typer.Option(help="That ask at the same time.")] = 64,
    seconds: Annotated[float, typer.Option(help="For which they ask.")] = 60.0,
    rows: Annotated[int, typer.Option(help="Decoded at a time.")] = 16,
    prompts: Annotated[int, typer.Option(help="Of the comparison with one list.")] = 400,
    output: Output = None,
) -> None:
    """Measures a server with the embedded model."""
    model = dllm.load("tiny")
    texts = [problem.prompt for problem in problems(num=prompts)]
    service = Service(model, "tiny", Engine(model, max_rows=rows, max_waiting=4 * clients))
    others = ProcessPoolExecutor(1, get_context("spawn"))  # clients are elsewhere
    with listening(service) as address, others:
        others.submit(memory).result()
        before = memory()
        seen = others.submit(loaded, address, texts, clients, seconds).result()
        gc.collect()
        grown = memory() - before
        left = service.engine.num_active + service.engine.num_waiting
        served = others.submit(timed, address, texts, clients).result()
    wrong = sum(answer != alone(model, body) for body, answer in seen.answers)
    listed = one_list(model, texts, rows)
    figures = {
        "clients": clients,
        "rows": rows,
        "requests": len(seen.answers) + seen.left + seen.refused,
        "answered": len(seen.answers),
        "hung up": seen.left,
        "refused": seen.refused,
        "other than alone": wrong,
        "rows left": left,
        "memory grown (MB)": round(grown / 1e6, 1),
        "p50 (s)": round(statistics.median(seen.seconds), 3),
        "p99 (s)": round(statistics.quantiles(seen.seconds, n=100)[98], 3),
        "tokens per second": round(seen.tokens / seconds, 1),
        "one setting, server (s)": round(served, 2),
        "one setting, one list (s)": round(listed, 2),
        "throughput of one list": round(listed / served, 3),
    }
    for name, value in figures.items():
        print(f"{name:28}{value}")
    write({"machine": machine(model.device), "figures": figures}, output)
    if wrong or left:
        raise typer.Exit(1)


def loaded(address: str, texts: Sequence[str], clients: int, seconds: float) -> Seen:
    """Returns what clients saw that asked for so long."""
    return asyncio.run(load(address, texts, clients, seconds))


def timed(address: str, texts: Sequence[str], clients: int) -> float:
    """Returns the seconds in which clients that do not wait for each other get all answers."""
    return asyncio.run(at_once(address, texts, clients))


async def load(address: str, texts: Sequence[str], clients: int, seconds: float) -> Seen:
    """Returns what clients saw that asked for so long."""
    seen, until = Seen(), perf_counter() + seconds
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=LIMIT, limits=limits) as http:
        await asyncio.gather(*(_client(http, texts, until, seen, n) for n in range(clients)))
    return seen


async def _client(
    http: httpx.AsyncClient, texts: Sequence[str], until: float, seen: Seen, number: int
) -> None:
    draw = random.Random(number)
    while perf_counter() < until:
        body = {**draw.choice(KINDS), "model": "tiny", "prompt": draw.choice(texts)}
        body["seed"] = draw.randrange(2**31)
        began = perf_counter()
        if draw.random() < 0.1:
            with contextlib.suppress(httpx.TimeoutException):
                await http.post("/v1/completions", json=body, timeout=draw.random() * 0.3)
            seen.left += 1
            continue
        answer = await http.post("/v1/completions", json=body)
        if answer.status_code != 200:
            seen.refused += 1
            continue
        made = answer.json()
        seen.seconds.append(perf_counter() - began)
        seen.tokens += made["usage"]["completion_tokens"]
        seen.answers.append((body, made["choices"][0]["text"]))


def alone(model: dllm.HostedModel, body: dict[str, Any]) -> str:
    """Returns the text that a request gets from `generate`."""
    options = {"max_new_tokens": body["max_tokens"], "temperature": body.get("temperature", 0)}
    out = dllm.generate(model, [body["prompt"]], seed=body["seed"], **options, **body["dllm"])
    assert out.texts is not None
    return out.texts[0]


ONE: dict[str, Any] = KINDS[0]


async def at_once(address: str, texts: Sequence[str], clients: int) -> float:
    """Returns the seconds in which clients that do not wait for each other get all answers."""
    left = list(texts)

    async def ask(http: httpx.AsyncClient) -> None:
        while left:
            body = {**ONE, "model": "tiny", "prompt": left.pop()}
            (await http.post("/v1/completions", json=body)).raise_for_status()

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=LIMIT, limits=limits) as http:
        began = perf_counter()
        await asyncio.gather(*(ask(http) for _ in range(clients)))
        return perf_counter() - began


def one_list(model: dllm.HostedModel, texts: Sequence[str], rows: int) -> float:
    """Returns the seconds that one call takes for all prompts."""
    settings = Settings(max_new_tokens=ONE["max_tokens"], batch_size=rows, **ONE["dllm"])
    began = perf_counter()
    dllm.generate(model, list(texts), settings)
    return perf_counter() - began


def memory() -> int:
    """Returns the most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    typer.run(main)
