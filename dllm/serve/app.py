"""The server's addresses: OpenAI's completions, health and metrics."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from dllm.serve.answering import answer
from dllm.serve.asked import FieldError
from dllm.serve.errors import body_of, invalid, response_of
from dllm.serve.fields import ChatRequest, CompletionRequest
from dllm.serve.guard import Guard
from dllm.serve.page import page
from dllm.serve.service import Service
from dllm.serve.shapes import chat_shape, text_shape


def app_of(service: Service) -> FastAPI:
    """Returns the application; the engine must have been started."""
    app = FastAPI(title="dllm", version=version("dllm"), docs_url="/docs", redoc_url=None)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such)
    app.add_exception_handler(FieldError, _failed)
    app.add_exception_handler(Exception, _failed)
    _add_completions(app, service)
    _add_state(app, service)
    if service.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    limits = service.limits
    app.add_middleware(
        Guard,
        api_key=service.access.api_key,
        max_body=limits.max_body,
        seconds=limits.body_seconds,
    )
    return app


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return invalid(error)


async def _no_such(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is"
    return JSONResponse(body_of(said, "invalid_request_error"), error.status_code)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return response_of(error)


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Completes a chat."""
        calls = asked.tools is not None and asked.tool_choice != "none"
        shape = chat_shape(service.name, bool(asked.logprobs), calls)
        return await answer(service, asked, request, shape)

    @app.post("/v1/completions")
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """Completes a text, or fills the gap before its suffix."""
        shape = text_shape(service.name, asked.logprobs is not None)
        return await answer(service, asked, request, shape)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Lists the one model that is served."""
        one = {"id": service.name, "object": "model", "created": 0, "owned_by": "dllm"}
        return {"object": "list", "data": [one]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """Describes the model that is served."""
        if name != service.name:
            said = f"model {name!r} is not served here: {service.name!r} is"
            return JSONResponse(body_of(said, "invalid_request_error", "model"), 404)
        one = {"id": service.name, "object": "model", "created": 0, "owned_by": "dllm"}
        return JSONResponse(one)

    @app.get("/", include_in_schema=False)
    async def chat_page() -> Response:
        """Returns a page to chat on."""
        made, policy = page(service)
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(made, headers=headers)

    @app.get("/health")
    async def health() -> Response:
        """Says whether requests are answered."""
        engine = service.engine
        good = engine.alive and not engine.closing
        state = "ok" if good else "ending" if engine.closing else "dead"
        body = {"status": state, "waiting": engine.num_waiting, "active": engine.num_active}
        return JSONResponse(body, 200 if good else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Returns figures in Prometheus' text form."""
        text, kind = service.measured.text(service.engine)
        return Response(text, media_type=kind)
