"""Running the application inside a loop that is not uvicorn's."""

import asyncio
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from adaptive_kv.config import ServerSettings
from adaptive_kv.errors import ConfigError

_MAX_HEADER_BYTES = 32 * 2**10
_KEEP_ALIVE_S = 75


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs the loop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def serve_http(
    app: Starlette,
    settings: ServerSettings,
    *,
    stop: asyncio.Event,
    on_listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until `stop` is set, then let requests finish for `drain_timeout_s`.

    `on_listening` is called with the base URL once connections are taken. Raises `ConfigError`
    when the address cannot be listened on.
    """
    listener = _listen(settings)
    server = _Server(_uvicorn_config(app, settings))
    looking = asyncio.create_task(app.state.watch.run(), name="http-watch")
    watching = asyncio.create_task(_watch(server, app, stop), name="http-stop")
    telling = asyncio.create_task(_tell(server, _url(listener), on_listening), name="http-start")
    try:
        await server.serve(sockets=[listener])
    finally:
        looking.cancel()
        watching.cancel()
        telling.cancel()
        listener.close()


def _listen(settings: ServerSettings) -> socket.socket:
    """Bound before the server starts, so that a taken port is a clear error."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        raise _cannot_listen(settings, error) from None
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(settings, error) from None
    return listener


def _cannot_listen(settings: ServerSettings, error: OSError) -> ConfigError:
    where = f"{settings.host}:{settings.port}"
    return ConfigError(
        f"cannot listen on {where}: {error.strerror}; set server.host or server.port"
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _uvicorn_config(app: Starlette, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )


async def _watch(server: uvicorn.Server, app: Starlette, stop: asyncio.Event) -> None:
    await stop.wait()
    app.state.closing.set()
    server.should_exit = True


async def _tell(
    server: uvicorn.Server, url: str, on_listening: Callable[[str], None] | None
) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    if on_listening is not None:
        on_listening(url)
