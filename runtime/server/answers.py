"""Errors as HTTP's statuses and OpenAI's JSON."""

from __future__ import annotations

import logging
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    InputError,
    MissingDependency,
    QueueFull,
    Refused,
    TortoiseError,
)

log = logging.getLogger("tortoise_rt.server")
CLIENT_GONE = 499  #: as nginx has it; nobody reads it but the log
#: error -> status, type
_STATUSES: tuple[tuple[type[TortoiseError], int, str], ...] = (
    (QueueFull, 429, "rate_limit_error"),
    (InputError, 400, "invalid_request_error"),
    (DeadlineExceeded, 504, "timeout_error"),
    (Cancelled, CLIENT_GONE, "cancelled"),
    (EngineError, 422, "invalid_request_error"),
    (MissingDependency, 501, "not_installed"),
)
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


def status_of(error: BaseException) -> tuple[int, str]:
    """-> (status, type of error)."""
    if isinstance(error, Refused):
        return error.status, _TYPES.get(error.status, "invalid_request_error")
    if isinstance(error, EngineError) and error.__cause__ is not None:
        return status_of(error.__cause__)  # what made the engine fail, if it was none of its own errors
    for kind, status, name in _STATUSES:
        if isinstance(error, kind):
            return status, name
    return 500, "server_error"


def error_object(error: BaseException) -> dict[str, Any]:
    """What OpenAI's clients read of an error. What is none of ours says nothing of this machine."""
    status, kind = status_of(error)
    if status == 500:
        log.error("a request failed", exc_info=error)
    ours = isinstance(error, TortoiseError) and status != 500
    message = " ".join(str(error).split()) if ours else "the server failed; its log has the request's id"
    return {"message": message, "type": kind, "param": None, "code": type(error).__name__ if ours else None}


def error_answer(error: BaseException, patience: float = 1) -> JSONResponse:
    """``patience``: seconds after which a full queue may have room."""
    status, _ = status_of(error)
    wait = (
        error.retry_after
        if isinstance(error, Refused)
        else patience
        if isinstance(error, QueueFull)
        else None
    )
    headers = {} if wait is None else {"Retry-After": str(max(1, math.ceil(wait)))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error_object(error)}, status, headers)


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of what an endpoint raises."""
    if isinstance(error, HTTPException):
        message = {
            404: f"there is no {request.url.path[:200]}",
            405: f"{request.method} is not for this path",
        }
        said = message.get(error.status_code, str(error.detail))
        kind = _TYPES.get(error.status_code, "invalid_request_error")
        content = {"error": {"message": said, "type": kind, "param": None, "code": None}}
        return JSONResponse(content, error.status_code, dict(error.headers or {}))
    return error_answer(error, request.app.state.service.gate.patience)
