"""A client of the service, over HTTP alone."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from adaptive_kv.errors import AdaptiveKVError

_TIMEOUT_S = 120.0
_DATA = b"data: "


class ApiError(AdaptiveKVError):
    """The service refused, failed or went away."""


class Api:
    """Blocking calls, each over a connection of its own; any thread."""

    def __init__(self, port: int) -> None:
        self._port = port

    def status(self) -> dict[str, Any]:
        """The state document. Raises `ApiError`."""
        with self._asked("GET", "/status") as response:
            document: dict[str, Any] = json.loads(response.read())
            return document

    def events(self) -> Iterator[dict[str, Any]]:
        """Event documents from the first one on, until the service ends. Raises `ApiError`."""
        with self._asked("GET", "/events?since=0") as response:
            yield from _documents(response)

    def chat(self, question: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer; the last one carries `usage`. Raises `ApiError`."""
        body = {
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "stream_options": {"include_usage": True},
            **parameters,
        }
        with self._asked("POST", "/v1/chat/completions", body) as response:
            for chunk in _documents(response):
                if "error" in chunk:
                    raise ApiError(chunk["error"]["message"])
                yield chunk

    @contextmanager
    def _asked(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        sent = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, sent, headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                answer = response.read(1000).decode(errors="replace")
                raise ApiError(f"{method} {path} got {response.status}: {answer}")
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"{method} {path} failed: {error!r}") from error
        finally:
            connection.close()


def _documents(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON documents of a stream of server-sent events."""
    for line in response:
        if line.startswith(_DATA + b"{"):
            yield json.loads(line.removeprefix(_DATA))
