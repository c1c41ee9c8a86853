"""What a request passes before any route sees it. Pure ASGI, so that streams are not wrapped."""

import ipaddress
import secrets
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adaptive_kv.errors import Refusal, RequestError
from adaptive_kv.server.dashboard import Page
from adaptive_kv.server.refusals import error_response

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WILDCARD = ("0.0.0.0", "::")  # noqa: S104 - compared with, never bound to
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class HostGate:
    """Lets in only requests that name us, so that no web page can reach us by DNS rebinding.

    Accepted are the loopback names, `host` and `allowed_hosts` (`*` accepts any). Where `host` is
    a wildcard address every literal IP address is accepted too: rebinding needs a name. A
    request that changes something and comes from a foreign web page gets 403.
    """

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {name.lower().strip("[]") for name in (*_LOOPBACK, host, *allowed_hosts)}
        self._takes_addresses = host in _WILDCARD

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await error_response(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        if not self._is_ours(f"//{headers.get('host', '')}"):
            message = "unknown Host; add it to server.allowed_hosts if it is this service's name"
            return Refusal(message, code="invalid_host")
        origin = headers.get("origin")
        if origin is None or scope["method"] in _SAFE_METHODS or self._is_ours(origin):
            return None
        return Refusal("requests from other web pages are refused", 403, code="foreign_origin")

    def _is_ours(self, url: str) -> bool:
        try:
            name = urlsplit(url).hostname or ""
        except ValueError:
            return False
        return (
            name.rstrip(".") in self._names
            or (bool(name) and "*" in self._names)
            or (self._takes_addresses and _is_address(name))
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class TokenGate:
    """Asks for `Authorization: Bearer <token>` on every path that is not in `open_paths`.

    A browser that goes to `/` cannot send it: it gets the refusal with `page` for a body, which
    asks for the token and sends it from then on.
    """

    def __init__(self, app: ASGIApp, token: str, open_paths: Collection[str], page: Page) -> None:
        self._app = app
        self._token = token.encode()
        self._open_paths = open_paths
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse."""
        if scope["type"] != "http" or scope["path"] in self._open_paths or self._knows(scope):
            await self._app(scope, receive, send)
            return
        await self._refusal(scope)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response:
        headers = {"www-authenticate": "Bearer"}
        if _is_visit(scope):
            return Response(self._page.content, 401, {**self._page.headers, **headers})
        message = "this service needs its token: Authorization: Bearer <server.token>"
        refusal = Refusal(message, 401, "authentication_error", code="invalid_api_key")
        return error_response(refusal, headers)

    def _knows(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        return secrets.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"


def _is_visit(scope: Scope) -> bool:
    """Whether a browser asks for the page."""
    is_page = scope["path"] == "/" and scope["method"] in {"GET", "HEAD"}
    return is_page and "text/html" in Headers(scope=scope).get("accept", "")


class BodyGate:
    """Refuses a body over `max_bytes`: before it is read where its length is announced.

    A body that comes in chunks is counted; reading past the limit raises `RequestError`.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif int(dict(scope["headers"]).get(b"content-length", 0)) > self._max_bytes:
            await error_response(self._refusal())(scope, receive, send)
        else:
            await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counting() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise RequestError(self._refusal())
            return message

        return counting

    def _refusal(self) -> Refusal:
        message = f"the body is larger than server.max_body, {self._max_bytes} bytes"
        return Refusal(message, 413, code="body_too_large")
