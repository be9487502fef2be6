"""OpenAI's own client, in the ways of it that `test_app.py` does not ask."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
import pytest
from pydantic import RootModel

import dllm
from dllm.serve.engine import Engine
from dllm.serve.service import Access, Service
from tests.support.serving import BASE, LONG, listening

PENS = "tom has 53 pens. tom loses 3. how many pens does tom have?"
RIGHT = "53-3=50; #### 50"
CHAT: list[Any] = [{"role": "user", "content": PENS}]
# Long enough that others find it running: a token a step, nothing kept between steps.
SLOW = {"scheduler": "fixed_quota", "cache": "none", "at_eos": "ignore"}


class Count(RootModel[Literal[50, 7]]):
    """What an answer is read as, in the few characters that the embedded model has."""


@pytest.mark.parametrize("slots", [6, 2])  # with an end token behind it, or up to the last slot
def test_a_class_is_a_schema_and_the_answer_one_of_it(client: openai.OpenAI, slots: int) -> None:
    made = client.chat.completions.parse(
        model="tiny", messages=CHAT, max_tokens=slots, response_format=Count
    )
    assert made.choices[0].finish_reason == "stop"
    assert isinstance(made.choices[0].message.parsed, Count)


def test_a_schema_is_streamed(client: openai.OpenAI) -> None:
    schema: Any = {"name": "count", "strict": True, "schema": Count.model_json_schema()}
    asked: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_tokens": 6}
    asked["response_format"] = {"type": "json_schema", "json_schema": schema}
    parts = client.chat.completions.create(stream=True, **asked)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    Count.model_validate_json(text)
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == text
    with client.chat.completions.stream(**asked) as events:
        final = events.get_final_completion()
    assert final.choices[0].message.content == text


def test_a_gap_is_streamed(client: openai.OpenAI) -> None:
    parts = client.completions.create(
        model="tiny", prompt=f"{PENS} 53-3=", suffix="; #### 50", max_tokens=2, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == "50"


def test_streams_of_the_client_that_does_not_wait(address: str) -> None:
    async def told(client: openai.AsyncOpenAI, number: int) -> str:
        prompt = f"tom has {number} pens. tom loses 3. how many pens does tom have?"
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": prompt}], stream=True
        )
        return "".join([part.choices[0].delta.content or "" async for part in stream])

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x") as client:
            return await asyncio.gather(*(told(client, number) for number in range(20, 32)))

    found = asyncio.run(ask())
    assert [text.split()[-1] for text in found] == [str(number - 3) for number in range(20, 32)]


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"temperature": -1}, "temperature", "0 or more"),
        ({"max_tokens": 10**9}, "max_tokens", "at most"),
        ({"logit_bias": {"5": 100}}, "logit_bias", "at most 0"),
        ({"extra_body": {"dllm": {"scheduler": "nobody"}}}, "dllm.scheduler", "nobody"),
        ({"extra_body": {"best_of_all": 1}}, "best_of_all", "no such field"),
    ],
    ids=["range", "many", "bias", "own", "unknown"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_error_names_its_field(
    client: openai.OpenAI, options: dict[str, Any], field: str, said: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as found:
        client.chat.completions.create(model="tiny", messages=CHAT, stream=stream, **options)
    assert found.value.param == field
    assert found.value.type == "invalid_request_error"
    assert json.loads(found.value.response.text)["error"]["param"] == field


def test_no_key_and_a_wrong_one(tiny: dllm.HostedModel) -> None:
    service = Service(tiny, "tiny", Engine(tiny), BASE, access=Access("secret", ()))
    with listening(service) as at:
        wrong = openai.OpenAI(base_url=f"{at}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="key"):
            wrong.completions.create(model="tiny", prompt=PENS)
        right = openai.OpenAI(base_url=f"{at}/v1", api_key="secret", max_retries=0)
        assert right.completions.create(model="tiny", prompt=PENS).choices[0].text == RIGHT


@pytest.mark.slow
def test_a_full_server_is_asked_again_when_it_says(tiny: dllm.HostedModel) -> None:
    service = Service(tiny, "tiny", Engine(tiny, max_rows=1, max_waiting=1), BASE)
    asked: dict[str, Any] = {"model": "tiny", "prompt": PENS, "max_tokens": 48}

    async def ask(at: str, retries: int, count: int) -> list[Any]:
        options: dict[str, Any] = {"base_url": f"{at}/v1", "api_key": "x", "timeout": LONG}
        async with openai.AsyncOpenAI(**options, max_retries=retries) as client:
            each = [
                client.completions.create(**asked, extra_body={"dllm": SLOW}) for _ in range(count)
            ]
            return await asyncio.gather(*each, return_exceptions=True)

    with listening(service) as at:
        refused = [one for one in asyncio.run(ask(at, 0, 6)) if isinstance(one, Exception)]
        assert refused
        assert all(isinstance(one, openai.RateLimitError) for one in refused)
        assert not [one for one in asyncio.run(ask(at, 8, 3)) if isinstance(one, Exception)]


def test_a_server_that_ends(tiny: dllm.HostedModel) -> None:
    service = Service(tiny, "tiny", Engine(tiny), BASE)
    with listening(service) as at:
        client = openai.OpenAI(base_url=f"{at}/v1", api_key="x", max_retries=0)
        service.engine.close()
        with pytest.raises(openai.InternalServerError) as found:
            client.completions.create(model="tiny", prompt=PENS)
        assert found.value.status_code == 503
    with pytest.raises(openai.APIConnectionError):
        client.completions.create(model="tiny", prompt=PENS)
