"""Everything that goes wrong becomes one OpenAI-shaped answer."""

import json
import math
from http import HTTPStatus
from typing import Any

import structlog
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from adaptive_kv.errors import Refusal, RequestError

_MAX_PARAM_CHARS = 200
"""A client may send any name; we do not send it back at any length."""

_log = structlog.get_logger(__name__)


def refuse(
    message: str, *, param: str | None = None, code: str | None = None, status: int = 400
) -> RequestError:
    """The error that blames the request; the caller raises it."""
    return RequestError(Refusal(message, status=status, param=param, code=code))


def refuse_invalid(error: ValidationError) -> RequestError:
    """What pydantic found first, naming the parameter and never quoting its value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _param(first["loc"])
    if first["type"] == "extra_forbidden":
        return refuse(f"unknown parameter: {param}", param=param, code="unknown_parameter")
    if first["type"] == "missing":
        code = "missing_required_parameter"
        return refuse(f"missing required parameter: {param}", param=param, code=code)
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return refuse(f"{param}: {first['msg']}", param=param or None, code=code)


def _param(place: tuple[int | str, ...]) -> str:
    """`messages[0].role`, as OpenAI writes a place."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).lstrip(".")[:_MAX_PARAM_CHARS]


def error_body(refusal: Refusal) -> str:
    """The JSON that shows `refusal` to a client."""
    shown = {
        "message": refusal.message,
        "type": refusal.type,
        "param": refusal.param,
        "code": refusal.code,
    }
    return json.dumps({"error": shown})


def error_response(refusal: Refusal, headers: dict[str, str] | None = None) -> Response:
    """The whole answer, with `Retry-After` in whole seconds where trying again helps."""
    headers = dict(headers or {})
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(refusal.retry_after_s)))
    return Response(error_body(refusal), refusal.status, headers, "application/json")


async def _on_request_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error.refusal)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    message = f"{request.method} {request.url.path}: {error.detail}"
    return error_response(
        Refusal(message, status=error.status_code, code=code), dict(error.headers or {})
    )


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("internal_error", path=request.url.path, error=type(error).__name__)
    return error_response(
        Refusal("internal error; the log has it", 500, "server_error", code="internal_error")
    )


EXCEPTION_HANDLERS: dict[Any, Any] = {
    RequestError: _on_request_error,
    HTTPException: _on_http_exception,
    ClientDisconnect: _on_disconnect,
    Exception: _on_bug,
}
"""For Starlette; an unexpected exception is answered here and still raised for the log."""
