"""Those who follow what the service publishes: its events over HTTP, everything over MQTT."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from urllib.parse import urlsplit

import aiomqtt

from adaptive_kv.demo.client import Api, ApiError
from adaptive_kv.demo.load import Clock
from adaptive_kv.demo.processes import NODE
from adaptive_kv.demo.timeline import Happening, Timeline

_LOOK_S = 0.1
_JOIN_S = 5.0


@contextmanager
def following_events(api: Api, timeline: Timeline, clock: Clock) -> Iterator[None]:
    """Every event of the service into the timeline, in a thread that ends with the service."""

    def follow() -> None:
        with suppress(ApiError):  # the service ended, and the stream with it
            for document in api.events():
                happened = datetime.fromisoformat(document["time"]).timestamp()
                timeline.happenings.append(Happening(clock.from_wall_s(happened), document))

    threading.Thread(target=follow, name="events", daemon=True).start()
    yield


@contextmanager
def following_mqtt(url: str | None, timeline: Timeline) -> Iterator[None]:
    """Count what a subscriber of the broker hears; nothing without a broker."""
    if url is None:
        yield
        return
    is_over = threading.Event()
    port = urlsplit(url).port
    assert port is not None
    timeline.has_broker = True

    def follow() -> None:
        asyncio.run(_subscribe(port, timeline, is_over))

    thread = threading.Thread(target=follow, name="mqtt", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(_JOIN_S)


async def _subscribe(port: int, timeline: Timeline, is_over: threading.Event) -> None:
    listening = asyncio.create_task(_listen(port, timeline))
    while not is_over.is_set() and not listening.done():
        await asyncio.sleep(_LOOK_S)
    listening.cancel()
    with suppress(asyncio.CancelledError, aiomqtt.MqttError):
        await listening


async def _listen(port: int, timeline: Timeline) -> None:
    async with aiomqtt.Client("127.0.0.1", port) as client:
        await client.subscribe(f"adaptive-kv/v1/{NODE}/#", qos=1)
        async for message in client.messages:
            kind = str(message.topic).rpartition("/")[2]
            timeline.num_mqtt_states += kind == "state"
            timeline.num_mqtt_events += kind == "event"
