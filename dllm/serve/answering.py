"""One request from its fields to its answer, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from anyio import move_on_after
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from dllm.serve.errors import response_of, told
from dllm.serve.fields import ChatRequest, CompletionRequest
from dllm.serve.job import Answer, Drawn, Failure, Job, Piece, Update
from dllm.serve.service import Service
from dllm.serve.shapes import Shape

_LOOK = 0.5  # seconds between two looks at whether a client is still there


class _Inbox:
    """The updates of one request's jobs, in the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()

    def tell(self, number: int) -> Callable[[Update], None]:
        """Returns what the engine's thread calls with the updates of one job."""

        def put(update: Update) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody reads it any more
                self._loop.call_soon_threadsafe(self._updates.put_nowait, (number, update))

        return put

    async def next(self, seconds: float) -> tuple[int, Update] | None:
        """Returns the next update; None: there was none in time."""
        with move_on_after(seconds):
            return await self._updates.get()
        return None


async def answer(
    service: Service, asked: ChatRequest | CompletionRequest, request: Request, shape: Shape
) -> Response:
    """Answers one request, whole or as a stream."""
    try:
        service.check_name(asked.model)
        inbox = _Inbox()
        jobs = await run_in_threadpool(service.jobs, asked, inbox.tell)
        service.engine.submit(jobs)
    except Exception as error:  # noqa: BLE001 told to the client, each in its form
        service.measured.refused(error)
        return response_of(error)
    if asked.stream:
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        events = _events(service, jobs, inbox, shape, usage)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    return await _whole(service, jobs, inbox, shape, request)


@asynccontextmanager
async def _held(jobs: list[Job]) -> AsyncIterator[None]:
    """Has the engine forget jobs once nobody waits for them."""
    try:
        yield
    finally:
        for job in jobs:
            job.cancelled = True


async def _whole(
    service: Service, jobs: list[Job], inbox: _Inbox, shape: Shape, request: Request
) -> Response:
    answers: dict[int, Answer] = {}
    async with _held(jobs):
        while len(answers) < len(jobs):
            found = await inbox.next(_LOOK)
            if found is None:
                if await request.is_disconnected():
                    service.measured.left()
                    return Response(status_code=499)
                continue
            number, update = found
            if isinstance(update, Failure):
                service.measured.refused(update.error)
                return response_of(update.error)
            if isinstance(update, Answer):
                answers[number] = update
                service.measured.answered(update)
    listed = [answers[number] for number in range(len(jobs))]
    return JSONResponse(shape.whole(listed, service.transcript))


async def _events(
    service: Service, jobs: list[Job], inbox: _Inbox, shape: Shape, with_usage: bool
) -> AsyncIterator[str]:
    """Yields the events of a stream."""
    answers: dict[int, Answer] = {}
    async with _held(jobs):
        for number in range(len(jobs)):
            if (first := shape.first(number)) is not None:
                yield _event(first)
        while len(answers) < len(jobs):
            found = await inbox.next(_LOOK)
            if found is None:
                continue  # a client that left ends this generator by itself
            number, update = found
            if isinstance(update, Failure):
                service.measured.refused(update.error)
                yield _event(told(update.error)[1])
                return
            if isinstance(update, Piece):
                if (part := shape.part(number, update.text)) is not None:
                    yield _event(part)
            elif isinstance(update, Drawn):
                yield _event(shape.drawn(number, update))
            else:
                answers[number] = update
                service.measured.answered(update)
                yield _event(shape.end(number, update, service.transcript))
        listed = [answers[number] for number in range(len(jobs))]
        if with_usage:
            yield _event(shape.last(listed))
        yield "data: [DONE]\n\n"


def _event(body: Any) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
