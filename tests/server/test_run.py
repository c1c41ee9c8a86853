"""The server runs in a loop that is not its own."""

import asyncio
import signal
import socket

import pytest
from pydantic import SecretStr
from server.scripted import serving

from adaptive_kv.config import ServerSettings
from adaptive_kv.errors import ConfigError
from adaptive_kv.server.run import serve_http


async def test_a_taken_port_is_a_clear_error() -> None:
    with serving() as served:
        settings = ServerSettings(port=served.address[1])
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:.*server\.port"):
            await serve_http(served.app, settings, stop=asyncio.Event())


async def test_a_host_that_is_not_ours_is_a_clear_error() -> None:
    with serving() as served:
        settings = ServerSettings(host="192.0.2.1", token=SecretStr("secret"))
        with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:8787"):
            await serve_http(served.app, settings, stop=asyncio.Event())


async def test_signals_are_left_to_the_loop() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = asyncio.Event()
    during: list[object] = []

    def on_listening(url: str) -> None:
        during.append(signal.getsignal(signal.SIGTERM))
        stop.set()

    with serving() as served:
        await serve_http(served.app, ServerSettings(port=0), stop=stop, on_listening=on_listening)
    assert during == [before]


def test_the_address_that_is_told_can_be_reached() -> None:
    host, shown = ("::1", "[::1]") if _has_ipv6_loopback() else ("127.0.0.1",) * 2
    with serving(host=host) as served:
        assert served.url.startswith(f"http://{shown}:")
        assert served.http.get("/healthz").status_code == 200


def _has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
