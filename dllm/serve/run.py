"""A server process: it ends once its answers are there, and says so to who comes late."""

from __future__ import annotations

import logging
from socket import socket
from threading import Thread
from types import FrameType

import uvicorn
from fastapi import FastAPI

from dllm.serve.service import Service

log = logging.getLogger(__name__)

_TOO_LONG = 64 * 1024  # bytes of headers


class Server(uvicorn.Server):
    """uvicorn, but for its end: the engine's answers come first, and new requests get 503."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service, self._grace = service, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends gently at the first signal, at once at the second."""
        if self._service.engine.closing:
            self.should_exit = self.force_exit = True
            return
        waited = self._service.engine.num_waiting + self._service.engine.num_active
        log.warning("ending once %d answers are there, or after %g s", waited, self._grace)
        Thread(target=self._end, name="dllm-end", daemon=True).start()

    def _end(self) -> None:
        self._service.engine.close(self._grace)
        self.should_exit = True


def config_of(app: FastAPI) -> uvicorn.Config:
    """Returns how uvicorn runs the application."""
    return uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        http="h11",  # which bounds headers; httptools, taken where it is installed, does not
        ws="none",
        h11_max_incomplete_event_size=_TOO_LONG,
        timeout_graceful_shutdown=5,
    )


def run(app: FastAPI, service: Service, listening: socket, grace: float) -> None:
    """Answers requests at a bound socket until a signal ends the process."""
    service.engine.start()
    try:
        Server(config_of(app), service, grace).run(sockets=[listening])
    finally:
        service.engine.close(0)
