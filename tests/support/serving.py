"""Jobs that are given to an engine, and a server that listens, in the test's own process."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import dllm
from dllm.serve.app import app_of
from dllm.serve.engine import Engine
from dllm.serve.job import Answer, Drawn, Failure, Job, Piece, Update, jobs_of
from dllm.serve.run import Server, config_of
from dllm.serve.service import Service
from dllm.settings import Settings, resolve

LONG = 60.0  # seconds after which a test gives up
BASE = Settings(scheduler="threshold:0.9", cache="dual", max_new_tokens=64, block_length=16)


@dataclass
class Heard:
    """What one job was told."""

    pieces: list[str] = field(default_factory=list)
    steps: list[Drawn] = field(default_factory=list)
    answer: Answer | None = None
    error: Exception | None = None
    over: Event = field(default_factory=Event)

    def tell(self, update: Update) -> None:
        if isinstance(update, Piece):
            assert update.text
            self.pieces.append(update.text)
        elif isinstance(update, Drawn):
            self.steps.append(update)
        else:
            assert not self.over.is_set(), "told twice"
            if isinstance(update, Failure):
                self.error = update.error
            else:
                self.answer = update
            self.over.set()

    def wait(self) -> Answer:
        assert self.over.wait(LONG), "no answer came"
        assert self.error is None, self.error
        assert self.answer is not None
        return self.answer


def job_of(
    model: Any, prompt: Any, seed: int = 0, streamed: bool = False, **options: Any
) -> tuple[Job, Heard]:
    """Returns a job and what will hear of it."""
    heard = Heard()
    settings = resolve(model.defaults, None, options)
    (job,) = jobs_of(model, prompt, settings, [seed], lambda _: heard.tell)
    job.pieces = job.drawn = streamed
    return job, heard


def assert_as_alone(model: Any, job: Job, answer: Answer, prompt: Any, **options: Any) -> None:
    """Checks that an answer is what the front door gives of the same prompt alone."""
    out = dllm.generate(model, [prompt], seed=job.seed, **options)
    assert out.texts is not None
    assert answer.text == out.texts[0]
    assert answer.row == out.metrics.rows[0]
    start = len(job.row.prompt)
    whole = out.sequences[0][start : start + job.num_open]
    assert answer.tokens == whole[: len(answer.tokens)]


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    """Starts an engine and ends it."""
    engine.start()
    try:
        yield engine
    finally:
        engine.close(LONG)


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """Yields the address of a server that runs in a thread of this process."""
    bound = socket.create_server(("127.0.0.1", 0))
    service.engine.start()
    server = Server(config_of(app_of(service)), service, grace=LONG)
    thread = Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        until = monotonic() + LONG
        while not server.started:
            assert monotonic() < until, "the server did not start"
            sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        service.engine.close(LONG)
        server.should_exit = True
        thread.join(LONG)
        bound.close()


def texts_of(answers: Sequence[Any]) -> list[str]:
    """Returns the texts of answers."""
    return [answer.text for answer in answers]
