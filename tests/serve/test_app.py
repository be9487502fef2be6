"""The server as clients see it: OpenAI's own client, and requests that no client would send."""

from __future__ import annotations

import asyncio
import json
import socket
from time import monotonic, sleep
from typing import Any

import httpx
import openai
import pytest

import dllm
from dllm.serve.engine import Engine
from dllm.serve.service import Access, Service
from tests.support.serving import BASE, LONG, listening

PENS = "tom has 53 pens. tom loses 3. how many pens does tom have?"
RIGHT = "53-3=50; #### 50"


def chat(prompt: str = PENS) -> list[Any]:
    return [{"role": "user", "content": prompt}]


def test_a_chat(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="tiny", messages=chat())
    (choice,) = made.choices
    assert choice.message.content == RIGHT
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert made.usage is not None
    assert made.usage.completion_tokens == 11
    assert made.usage.total_tokens == made.usage.prompt_tokens + 11
    figures: Any = made.model_extra
    assert figures["dllm"]["forwards"] >= 2
    assert figures["dllm"]["tokens_per_forward"] > 1


def test_a_chat_is_streamed(client: openai.OpenAI) -> None:
    parts = list(
        client.chat.completions.create(
            model="tiny", messages=chat(), stream=True, stream_options={"include_usage": True}
        )
    )
    assert parts[0].choices[0].delta.role == "assistant"
    texts = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert "".join(texts) == RIGHT
    assert sum(bool(text) for text in texts) > 1, "in one piece, which is no stream"
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == "stop"
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 11


def test_every_event_of_a_stream_without_usage_has_a_choice(client: openai.OpenAI) -> None:
    parts = client.chat.completions.create(model="tiny", messages=chat(), stream=True)
    assert all(part.choices for part in parts)


def test_several_answers(client: openai.OpenAI, tiny: dllm.HostedModel) -> None:
    asked: dict[str, Any] = {"messages": chat(), "n": 3, "temperature": 0.9, "seed": 5}
    made = client.chat.completions.create(model="tiny", **asked)
    out = dllm.generate(tiny, chat(), BASE, n=3, temperature=0.9, seed=5)
    assert [choice.message.content for choice in made.choices] == list(out.texts or ())
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    parts = client.chat.completions.create(model="tiny", stream=True, **asked)
    texts = ["", "", ""]
    for part in parts:
        texts[part.choices[0].index] += part.choices[0].delta.content or ""
    assert texts == list(out.texts or ())


def test_sure_of_each_token(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="tiny", messages=chat(), logprobs=True)
    content = made.choices[0].logprobs and made.choices[0].logprobs.content
    assert content is not None
    assert "".join(one.token for one in content) == RIGHT  # type: ignore[union-attr]
    assert all(one.logprob <= 0 for one in content)  # type: ignore[union-attr]
    text = client.completions.create(model="tiny", prompt=PENS, logprobs=0)
    logprobs = text.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == RIGHT


def test_a_text_and_several(client: openai.OpenAI) -> None:
    one = client.completions.create(model="tiny", prompt=PENS)
    assert one.choices[0].text == RIGHT
    several = client.completions.create(model="tiny", prompt=["copy: tom, ann, sue.", PENS])
    assert [choice.text for choice in several.choices] == ["tom, ann, sue", RIGHT]
    assert [choice.index for choice in several.choices] == [0, 1]


def test_token_ids(client: openai.OpenAI, tiny: dllm.HostedModel) -> None:
    assert tiny.tokenizer is not None
    ids = list(tiny.tokenizer.encode(PENS))
    assert client.completions.create(model="tiny", prompt=ids).choices[0].text == RIGHT
    both = client.completions.create(model="tiny", prompt=[ids, ids])
    assert [choice.text for choice in both.choices] == [RIGHT, RIGHT]


def test_a_gap_before_a_suffix(client: openai.OpenAI) -> None:
    made = client.completions.create(
        model="tiny", prompt=f"{PENS} 53-3=", suffix="; #### 50", max_tokens=2
    )
    assert made.choices[0].text == "50"


def test_a_stop_string(client: openai.OpenAI) -> None:
    made = client.completions.create(model="tiny", prompt=PENS, stop=";")
    assert made.choices[0].text == "53-3=50"
    assert made.choices[0].finish_reason == "stop"
    parts = client.completions.create(model="tiny", prompt=PENS, stop=[";", "zzz"], stream=True)
    assert "".join(part.choices[0].text for part in parts) == "53-3=50"


def test_as_few_tokens_as_asked_for(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model="tiny", messages=chat(), max_completion_tokens=4, extra_body={"dllm": {"steps": 4}}
    )
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert made.usage.completion_tokens == 4


def test_a_schema(client: openai.OpenAI) -> None:
    schema: Any = {"name": "count", "schema": {"type": "integer"}}
    made = client.chat.completions.create(
        model="tiny",
        messages=chat(),
        max_tokens=6,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert isinstance(json.loads(made.choices[0].message.content or ""), int)


def test_own_fields(client: openai.OpenAI) -> None:
    own = {"scheduler": {"name": "fixed_quota", "steps": 16}, "cache": "none", "block_length": 8}
    own["constraint"] = {"regex": "[0-9]{3}"}
    made = client.completions.create(
        model="tiny", prompt=PENS, max_tokens=8, extra_body={"dllm": own}
    )
    assert made.choices[0].text.isdigit()
    assert len(made.choices[0].text) == 3


def test_the_canvas_step_by_step(http: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": PENS, "stream": True, "dllm": {"stream": "canvas"}}
    lines = http.post("/v1/completions", json=body).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
    steps = [event["dllm"]["canvas"] for event in events if "canvas" in event.get("dllm", {})]
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    text: dict[int, str] = {}
    for step in steps:
        text |= {place: word for place, _, word in step["committed"]}
    assert "".join(text[place] for place in range(11)) == RIGHT
    assert steps[0]["drafts"], "what is not sure yet"
    assert "data: [DONE]" in lines


def test_the_same_client_asked_without_waiting(address: str) -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x") as client:
            asked = [
                client.completions.create(
                    model="tiny",
                    prompt=f"tom has {n} pens. tom loses 3. how many pens does tom have?",
                )
                for n in range(20, 40)
            ]
            return await asyncio.gather(*asked)

    made = asyncio.run(ask())
    assert [one.choices[0].text.split()[-1] for one in made] == [str(n - 3) for n in range(20, 40)]


def test_models_health_and_metrics(client: openai.OpenAI, http: httpx.Client) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'other' is not served"):
        client.models.retrieve("other")
    assert http.get("/health").json()["status"] == "ok"
    client.completions.create(model="tiny", prompt=PENS)
    text = http.get("/metrics").text
    assert 'dllm_answers_total{reason="eos"}' in text
    assert "dllm_tokens_per_forward_bucket" in text
    assert http.get("/docs").status_code == 200


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
GOOD: dict[str, Any] = {"model": "tiny", "prompt": PENS}
SAID: dict[str, Any] = {"model": "tiny", "messages": chat()}
# Address, body, status, field, and what the message says.
WRONG: list[tuple[str, Any, int, str | None, str]] = [
    (TEXT, b"{", 400, None, "no JSON"),
    (TEXT, b"", 400, None, "required"),
    (TEXT, b"[1, 2]", 400, None, "valid dictionary"),
    (TEXT, b'"text"', 400, None, "valid dictionary"),
    (TEXT, b"\xff\xfe", 400, None, ""),
    (TEXT, b"[" * 15_000, 400, None, ""),
    (TEXT, {}, 400, "model", "required"),
    (TEXT, {"model": "tiny"}, 400, "prompt", "required"),
    (TEXT, {**GOOD, "model": "gpt-4"}, 400, "model", "'tiny' is"),
    (TEXT, {**GOOD, "model": 3}, 400, "model", "string"),
    (TEXT, {**GOOD, "promt": "x"}, 400, "promt", "no such field"),
    (TEXT, {**GOOD, "prompt": ""}, 400, "prompt", "empty"),
    (TEXT, {**GOOD, "prompt": []}, 400, "prompt", "empty"),
    (TEXT, {**GOOD, "prompt": [""]}, 400, "prompt", "empty"),
    (TEXT, {**GOOD, "prompt": [1, "x"]}, 400, "prompt", ""),
    (TEXT, {**GOOD, "prompt": [10**9]}, 400, None, "1000000000"),
    (TEXT, {**GOOD, "prompt": [-1]}, 400, None, "-1"),
    (TEXT, {**GOOD, "prompt": [0]}, 400, None, "mask token"),
    (TEXT, {**GOOD, "prompt": "x\ud800"}, 400, None, ""),
    (TEXT, {**GOOD, "prompt": "tom " * 2000}, 400, None, "limit of 256"),
    (TEXT, {**GOOD, "prompt": [PENS] * 9}, 400, "n", "9 prompt"),
    (TEXT, {**GOOD, "max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
    (TEXT, {**GOOD, "max_tokens": -5}, 400, "max_tokens", "greater"),
    (TEXT, {**GOOD, "max_tokens": 10**9}, 400, "max_tokens", "at most 1048576"),
    (TEXT, {**GOOD, "max_tokens": 129}, 400, "max_tokens", "more than the 128"),
    (TEXT, {**GOOD, "max_tokens": 10**400}, 400, None, ""),
    (TEXT, {**GOOD, "max_tokens": "many"}, 400, "max_tokens", "integer"),
    (TEXT, {**GOOD, "max_tokens": 1.5}, 400, "max_tokens", "integer"),
    (TEXT, {**GOOD, "temperature": -1}, 400, "temperature", "0 or more"),
    (TEXT, {**GOOD, "temperature": "hot"}, 400, "temperature", "number"),
    (TEXT, b'{"model": "tiny", "prompt": "x", "temperature": NaN}', 400, "temperature", "finite"),
    (TEXT, b'{"model": "tiny", "prompt": "x", "temperature": 1e999}', 400, "temperature", "finite"),
    (TEXT, {**GOOD, "top_p": 0}, 400, "top_p", "top_p"),
    (TEXT, {**GOOD, "top_p": 3}, 400, "top_p", "top_p"),
    (TEXT, {**GOOD, "n": 0}, 400, "n", "greater"),
    (TEXT, {**GOOD, "n": 10**6}, 400, "n", "less than or equal to 128"),
    (TEXT, {**GOOD, "n": 100}, 400, "n", "n=100"),
    (TEXT, {**GOOD, "stop": ""}, 400, None, "empty text"),
    (TEXT, {**GOOD, "stop": [1]}, 400, None, "string"),
    (TEXT, {**GOOD, "seed": "x"}, 400, "seed", "integer"),
    (TEXT, {**GOOD, "stream": "yes"}, 400, "stream", "boolean"),
    (TEXT, {**GOOD, "echo": True}, 400, "echo", "False"),
    (TEXT, {**GOOD, "best_of": 3}, 400, "best_of", "1"),
    (TEXT, {**GOOD, "logprobs": 5}, 400, "logprobs", "less than or equal to 0"),
    (TEXT, {**GOOD, "frequency_penalty": 1}, 400, "frequency_penalty", "0"),
    (TEXT, {**GOOD, "logit_bias": {"5": 100}}, 400, "logit_bias", "at most 0"),
    (TEXT, {**GOOD, "prompt": [1], "suffix": "x"}, 400, "suffix", "token ids"),
    (CHAT, {"model": "tiny", "messages": []}, 400, "messages", "at least 1"),
    (CHAT, {"model": "tiny", "messages": "hello"}, 400, "messages", "list"),
    (CHAT, {"model": "tiny", "messages": [{"role": "user"}]}, 400, "messages.0.content", "req"),
    (
        CHAT,
        {"model": "tiny", "messages": [{"role": "x", "content": ""}]},
        400,
        "messages.0.role",
        "user",
    ),
    (CHAT, {**SAID, "functions": []}, 400, "functions", "no such field"),
    (CHAT, {**SAID, "tools": []}, 400, "tools", "at least 1"),
    (TEXT, {**GOOD, "tools": []}, 400, "tools", "no such field"),
    (CHAT, {**SAID, "max_tokens": 3, "max_completion_tokens": 4}, 400, "max_tokens", "differ"),
    (
        CHAT,
        {**SAID, "response_format": {"type": "json_schema"}},
        400,
        "response_format.json_schema",
        "missing",
    ),
    (
        CHAT,
        {
            **SAID,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "wrong"}},
            },
        },
        400,
        None,
        "wrong",
    ),
    (
        CHAT,
        {
            **SAID,
            "max_tokens": 1,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"const": 12345}},
            },
        },
        400,
        None,
        "at least",
    ),
    (TEXT, {**GOOD, "dllm": {"sheduler": "x"}}, 400, "dllm.sheduler", "unknown field"),
    (TEXT, {**GOOD, "dllm": {"scheduler": "nobody"}}, 400, "dllm.scheduler", "nobody"),
    (TEXT, {**GOOD, "dllm": {"scheduler": "threshold:7"}}, 400, None, "7"),
    (TEXT, {**GOOD, "dllm": {"scheduler": "os:system"}}, 400, "dllm.scheduler", "module"),
    (TEXT, {**GOOD, "dllm": {"scheduler": "/tmp/evil.py:Evil"}}, 400, "dllm.scheduler", "file"),
    (
        TEXT,
        {**GOOD, "dllm": {"scheduler": {"name": "adablock", "inner": "os:system"}}},
        400,
        "dllm.scheduler",
        "module",
    ),
    (
        TEXT,
        {**GOOD, "dllm": {"scheduler": {"name": "learn2pd", "filter": "/etc/passwd"}}},
        400,
        "dllm.scheduler",
        "file",
    ),
    (TEXT, {**GOOD, "temperature": 0.5, "dllm": {"scheduler": "ete"}}, 400, "temperature", "ete"),
    (
        TEXT,
        {**GOOD, "dllm": {"constraint": {"regex": {"file": "/etc/passwd"}}}},
        400,
        "dllm.constraint",
        "file",
    ),
    (TEXT, {**GOOD, "dllm": {"constraint": {"regex": "("}}}, 400, "dllm.constraint", "("),
    (TEXT, {**GOOD, "dllm": {"constraint": {"regex": "(a{1000}){1000}"}}}, 400, None, ""),
    (TEXT, {**GOOD, "dllm": {"constraint": {"grammar": "start: start start"}}}, 400, None, ""),
    (TEXT, {**GOOD, "dllm": {"batch_size": 3}}, 400, "dllm.batch_size", "unknown field"),
    (TEXT, {**GOOD, "dllm": {"steps": 10**12}}, 400, None, ""),
    (TEXT, {**GOOD, "dllm": {"block_length": -1}}, 400, "dllm.block_length", "-1"),
    (TEXT, {**GOOD, "dllm": {"forbidden_token_ids": [10**9]}}, 400, None, "1000000000"),
    (TEXT, {**GOOD, "dllm": []}, 400, "dllm", "dictionary"),
    (TEXT, b'{"model": "tiny", "prompt": "' + b"x" * 30_000 + b'"}', 413, None, "20000 bytes"),
    ("/v1/nothing", {}, 404, None, "/docs"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "field", "said"), WRONG, ids=[str(n) for n in range(len(WRONG))]
)
def test_wrong_requests(
    http: httpx.Client, path: str, body: Any, status: int, field: str | None, said: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = http.post(path, content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]
    assert len(error["message"]) < 2000
    if field is not None:
        assert error["param"] == field
    good = http.post(TEXT, json=GOOD)
    assert good.json()["choices"][0]["text"] == RIGHT


def exchange(address: str, sent: bytes, seconds: float = LONG) -> bytes:
    """Returns what a server says to bytes, up to its closing."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_server(("127.0.0.1", 0)):
        pass
    with socket.create_connection((host, int(port)), seconds) as connection:
        connection.sendall(sent)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /none HTTP/9.9\r\nhost: x\r\nconnection: close\r\n\r\n", b"404"),
        (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", b"400"),
        (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b"content-length: 99999999999\r\n\r\n",
            b"413",
        ),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 100_000 + b"\r\n", b"400"),
        (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b"content-length: 90\r\n\r\nslow",
            b"408",
        ),
        (
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b"transfer-encoding: chunked\r\n\r\n" + (b"2000\r\n" + b"x" * 8192 + b"\r\n") * 4,
            b"413",
        ),
    ],
    ids=["nonsense", "version", "negative", "huge", "header-flood", "slow-sender", "chunked"],
)
def test_hostile_connections(address: str, http: httpx.Client, sent: bytes, status: bytes) -> None:
    try:
        assert status in exchange(address, sent).split(b"\r\n")[0]
    except ConnectionResetError:
        assert status == b"400"  # it was told, but had not listened to the end
    assert http.get("/health").json()["status"] == "ok"


def test_who_hangs_up_is_forgotten(address: str, http: httpx.Client, service: Service) -> None:
    body = {
        **GOOD,
        "max_tokens": 128,
        "stream": True,
        "dllm": {"scheduler": "fixed_quota", "cache": "none", "at_eos": "ignore"},
    }
    before = service.engine.counts.cancelled
    with http.stream("POST", TEXT, json=body) as answer:
        next(answer.iter_lines())
    until = monotonic() + LONG
    while service.engine.counts.cancelled == before or service.engine.num_active:
        assert monotonic() < until
        sleep(0.01)


def test_a_key_and_origins(tiny: dllm.HostedModel) -> None:
    access = Access("secret", ("http://page.example",))
    service = Service(tiny, "tiny", Engine(tiny), BASE, access=access)
    with listening(service) as at, httpx.Client(base_url=at, timeout=LONG) as http:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            refused = http.post(TEXT, json=GOOD, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["type"] == "authentication_error"
        key = {"authorization": "Bearer secret", "origin": "http://page.example"}
        good = http.post(TEXT, json=GOOD, headers=key)
        assert good.json()["choices"][0]["text"] == RIGHT
        assert good.headers["access-control-allow-origin"] == "http://page.example"
        other = http.post(TEXT, json=GOOD, headers={**key, "origin": "http://other.example"})
        assert "access-control-allow-origin" not in other.headers
        assert http.get("/health").status_code == 200


def test_no_more_than_may_wait(tiny: dllm.HostedModel) -> None:
    service = Service(tiny, "tiny", Engine(tiny, max_waiting=2), BASE)
    with listening(service) as at, httpx.Client(base_url=at, timeout=LONG) as http:
        refused = http.post(TEXT, json={**GOOD, "n": 3})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert http.post(TEXT, json={**GOOD, "n": 2}).status_code == 200
        service.engine.close()
        assert http.post(TEXT, json=GOOD).status_code == 503
        assert http.get("/health").json()["status"] == "ending"
