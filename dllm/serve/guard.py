"""What stands before every request: its key, the size of its body, the time it may take to come."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from anyio import move_on_after
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dllm.serve.errors import body_of

_INVALID = "invalid_request_error"


@dataclass(frozen=True)
class Guard:
    """Answers requests that are not let in, and passes on the others with their whole body."""

    app: ASGIApp
    api_key: str | None
    max_body: int  # bytes
    seconds: float  # for a body to come

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes on, one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope["path"], headers)
        body = b""
        if refused is None and scope["method"] in ("POST", "PUT", "PATCH"):
            read = await self._read(receive)
            if isinstance(read, JSONResponse):
                refused = read
            else:
                body = read
        if refused is not None:
            await refused(scope, receive, send)
            return
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> Message:
            return next(given, None) or await receive()

        await self.app(scope, again, send)

    def _refused(self, path: str, headers: Headers) -> JSONResponse | None:
        """Returns the answer to who is not let in; None: come in."""
        if self.api_key is not None and path.startswith("/v1/"):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.api_key.encode()):
                said = "the API key is missing or wrong: send Authorization: Bearer KEY"
                return JSONResponse(body_of(said, "authentication_error"), 401)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_body:
            return self._too_large()
        return None

    async def _read(self, receive: Receive) -> bytes | JSONResponse:
        """Returns the body, or the answer to one that is too large or too slow."""
        body = bytearray()
        with move_on_after(self.seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return b""
                body += message.get("body", b"")
                if len(body) > self.max_body:
                    return self._too_large()
                if not message.get("more_body"):
                    return bytes(body)
        said = f"the body was not there after {self.seconds:g} s: send it faster"
        return JSONResponse(body_of(said, _INVALID), 408)

    def _too_large(self) -> JSONResponse:
        said = f"the body has more than {self.max_body} bytes: send less"
        return JSONResponse(body_of(said, _INVALID), 413)
