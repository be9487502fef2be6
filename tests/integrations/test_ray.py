"""`dllm serve` on Ray: two replicas on a CPU, of which one is killed while it answers."""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from ray import serve

import dllm
from dllm.integrations import ray as ours
from dllm.integrations.ray import Arguments, Replica, app, application
from dllm.serve.engine import Engine
from tests.support.rays import LONG, cluster, kill, replicas, wait_for
from tests.support.serving import job_of

DECODING: dict[str, Any] = {
    "scheduler": "threshold:0.9",
    "cache": "dual",
    "max_new_tokens": 64,
    "block_length": 16,
}
OPTIONS = DECODING | {"health_check_period": 0.5, "grace": 30.0, "batch_size": 4}
PROMPTS = [
    *(f"tom has {n} pens. tom loses 3. how many pens does tom have?" for n in range(20, 32)),
    *(f"ann has {n} cups. ann buys 7 more. how many cups does ann have?" for n in range(10, 22)),
]
# What a client is told whose answer was lost with a replica: status 500, or of what had begun to
# come, that the connection ended before its end.
LOST = (openai.InternalServerError, openai.APIConnectionError, httpx.RemoteProtocolError)


def asked(address: str, prompt: str, streamed: bool) -> str | Exception:
    """Returns an answer, or the error that a client gets in its place."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=LONG, max_retries=0)
    messages: list[Any] = [{"role": "user", "content": prompt}]
    try:
        if not streamed:
            made = client.chat.completions.create(model="tiny", messages=messages)
            return made.choices[0].message.content or ""
        parts = client.chat.completions.create(model="tiny", messages=messages, stream=True)
        return "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    except (openai.APIError, httpx.HTTPError) as error:
        return error


def all_asked(pool: ThreadPoolExecutor, address: str) -> list[Any]:
    """Asks for all prompts at a time, every second one streamed; returns what will be told."""
    numbered = enumerate(PROMPTS)
    return [pool.submit(asked, address, prompt, bool(n % 2)) for n, prompt in numbered]


def check_answers_are_those_of_generate(address: str, expected: list[str]) -> None:
    wait_for(2)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert [one.result() for one in all_asked(pool, address)] == expected


def check_streams_come_in_parts(address: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPTS[0]}], "stream": True}
    with httpx.stream(
        "POST", f"{address}/v1/chat/completions", json=body, timeout=LONG
    ) as response:
        chunks = list(response.iter_raw())
    assert len(chunks) > 2
    assert chunks[-1].endswith(b"data: [DONE]\n\n")


def check_each_replica_has_figures_of_its_own(address: str) -> None:
    wait_for(2)
    until = monotonic() + LONG
    seen: set[str] = set()
    while len(seen) < 2:
        assert monotonic() < until
        text = httpx.get(f"{address}/metrics", timeout=LONG).text
        seen |= {line for line in text.splitlines() if line.startswith("target_info")}
    names = {name.rpartition("#")[2] for name in replicas()}
    assert seen == {f'target_info{{replica="{name}"}} 1.0' for name in names}


def check_a_killed_replica_costs_its_own_answers_and_is_replaced(
    address: str, expected: list[str]
) -> None:
    for _ in range(5):  # a replica may be through with its answers when it is killed
        wait_for(2)
        victim = replicas()[0]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            asked_for = all_asked(pool, address)
            while not any(one.done() for one in asked_for):  # both decode now
                sleep(0.005)
            kill(victim)
            told = [one.result() for one in asked_for]
        lost = 0
        for answer, text in zip(told, expected, strict=True):
            if isinstance(answer, Exception):
                lost += 1
                assert isinstance(answer, LOST), repr(answer)
            else:
                assert answer == text
        wait_for(2, without=victim)
        if lost:
            break
    assert 0 < lost < len(PROMPTS)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert [one.result() for one in all_asked(pool, address)] == expected


def check_a_replica_that_leaves_finishes_its_answers(address: str, expected: list[str]) -> None:
    wait_for(2)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        asked_for = all_asked(pool, address)
        while not any(one.done() for one in asked_for):
            sleep(0.005)
        serve.run(application("tiny", num_replicas=1, **OPTIONS))
        assert [one.result() for one in asked_for] == expected
    wait_for(1)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_replicas(tiny: dllm.HostedModel) -> None:
    """One test: of several, each worker of the suite would start a cluster of its own."""
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    expected = list(dllm.generate(tiny, chats, **DECODING).texts or ())
    with cluster() as address:
        serve.run(application("tiny", num_replicas=2, **OPTIONS))
        check_answers_are_those_of_generate(address, expected)
        check_streams_come_in_parts(address)
        check_each_replica_has_figures_of_its_own(address)
        check_a_killed_replica_costs_its_own_answers_and_is_replaced(address, expected)
        check_a_replica_that_leaves_finishes_its_answers(address, expected)


class Context:
    replica_id = SimpleNamespace(unique_id="one")


def test_a_replica_without_its_thread_is_not_healthy(
    tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "get_replica_context", Context)
    replica = Replica(Arguments(**OPTIONS))
    assert replica.service is not None
    engine: Engine = replica.service.engine
    job, heard = job_of(engine.model, PROMPTS[0], **DECODING)
    engine.submit([job])
    monkeypatch.setattr(ours, "Gauge", Kept)
    replica.check_health()
    assert {"dllm_waiting", "dllm_active", "dllm_passes"} < set(Kept.values)
    replica.__del__()  # as Ray does, which waits for the answer
    assert heard.wait().tokens
    with pytest.raises(RuntimeError, match="answers nothing"):
        replica.check_health()


class Kept:
    """Ray's gauges, which are kept where nobody collects them."""

    values: dict[str, float] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.keys = name, set(tag_keys)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self.keys
        self.values[self.name] = value


def test_what_ray_is_told() -> None:
    made = app({"model": "tiny", "num_replicas": "2", "batch_size": "8"})  # as a shell says it
    deployment = made._bound_deployment
    assert deployment.num_replicas == 2
    assert deployment.max_ongoing_requests == 16
    scaled = application(autoscaling={"min_replicas": 1, "max_replicas": 3}, grace=7.0)
    config: Any = scaled._bound_deployment._deployment_config
    assert config.autoscaling_config.max_replicas == 3
    assert config.graceful_shutdown_timeout_s > 7


def test_options_that_cannot_be() -> None:
    with pytest.raises(TypeError, match="no option 'num_replica': did you mean 'num_replicas'"):
        application(num_replica=2)
    with pytest.raises(ValueError, match="num_replicas"):
        application(num_replicas=0)
    with pytest.raises(ValueError, match="leave one of them out"):
        application(num_replicas=2, autoscaling={"max_replicas": 3})


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "dllm.integrations.ray")
    with pytest.raises(ImportError, match=r"pip install 'dllm\[ray\]'"):
        importlib.import_module("dllm.integrations.ray")
