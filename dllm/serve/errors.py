"""What goes wrong, as an answer in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.serve.asked import FieldError
from dllm.serve.engine import FullError
from dllm.serve.job import LateError, StoppedError

RETRY_SECONDS = 1
_INVALID = "invalid_request_error"
_KINDS: Sequence[tuple[type[Exception], int, str]] = (
    (FullError, 429, "rate_limit_error"),
    (StoppedError, 503, "server_error"),
    (NotEnoughMemoryError, 503, "server_error"),
    (LateError, 504, "timeout_error"),
    (BrokenLogitsError, 500, "server_error"),
    (ValueError, 400, _INVALID),
    (TypeError, 400, _INVALID),
)


def body_of(message: str, kind: str, field: str | None = None, code: str | None = None) -> Any:
    """Returns the body of an error."""
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def told(error: Exception) -> tuple[int, Any]:
    """Returns the status and the body for an error; of faults of ours only that there was one."""
    for kind, status, name in _KINDS:
        if isinstance(error, kind):
            field = error.field if isinstance(error, FieldError) else None
            return status, body_of(str(error), name, field)
    return 500, body_of("the server failed at this request; its log says how", "server_error")


def response_of(error: Exception) -> JSONResponse:
    """Returns the answer to a request that failed."""
    status, body = told(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
    return JSONResponse(body, status, headers)


def invalid(error: RequestValidationError) -> JSONResponse:
    """Returns the answer to a body whose fields are not what they must be."""
    first = error.errors()[0]
    place = [*first["loc"][1:]]
    if first["type"].startswith("union_tag_"):  # of a field that says of which kind an object is
        place.append(first["ctx"]["discriminator"].strip("'"))
    field = ".".join(_place(place, error.body)) or None
    if first["type"] == "json_invalid":
        said = f"the body is no JSON: {first['ctx']['error']} at byte {first['loc'][-1]}"
        return JSONResponse(body_of(said, _INVALID), 400)
    said = first["msg"]
    if first["type"] == "extra_forbidden":
        said = "there is no such field"
    message = f"{field}: {said}" if field else said
    return JSONResponse(body_of(message, _INVALID, field), 400)


def _place(loc: Sequence[str | int], body: Any) -> list[str]:
    """Returns where in a body a fault is, without the names of kinds that a field may have."""
    found = []
    for number, part in enumerate(loc):
        is_key = isinstance(body, Mapping) and (part in body or number + 1 == len(loc))
        is_index = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if is_key or is_index:
            found.append(str(part))
            body = None if is_key and part not in body else body[part]
    return found
