"""One server that listens, for all tests of its addresses."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

import dllm
from dllm.serve.engine import Engine
from dllm.serve.service import Limits, Service
from tests.support.serving import BASE, LONG, listening

SMALL = Limits(max_tokens=128, max_answers=4, max_body=20_000, body_seconds=1.0)


@pytest.fixture(scope="session")
def service(tiny: dllm.HostedModel) -> Service:
    return Service(tiny, "tiny", Engine(tiny, max_rows=4), BASE, SMALL)


@pytest.fixture(scope="session")
def address(service: Service) -> Iterator[str]:
    with listening(service) as at:
        yield at


@pytest.fixture(scope="session")
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=LONG) as client:
        yield client


@pytest.fixture(scope="session")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=LONG, max_retries=0)
