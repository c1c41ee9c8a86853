"""Hears what nodes publish, for as long as somebody wants to know."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from adaptive_kv.mqtt.link import Broker, Link, Timing
from adaptive_kv.mqtt.upkeep import stay_connected

_KINDS = ("availability", "info", "state", "event")
_TIMING = Timing(longest_retry_s=10.0)


@dataclass(slots=True)
class Follower:
    """Hands over every document of `node`, or of all where that is `+`, until `stop` is set."""

    broker: Broker
    base: str
    node: str
    on_message: Callable[[str, bytes], object]
    """Called with the topic and what came."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    is_connected: bool = False
    last_error: str | None = None
    """Why there is no connection, or was none the last time."""
    num_failures: int = 0
    """How often there was none, or no more."""

    async def run(self) -> None:
        """Follow, over as many connections as it takes."""
        client_id = f"{self.base.replace('/', '-')}-watch-{secrets.token_hex(4)}"
        following = asyncio.create_task(
            stay_connected(
                self.broker,
                client_id,
                _TIMING,
                converse=self._converse,
                on_lost=self._lost,
                stop=self.stop,
            )
        )
        await self.stop.wait()
        following.cancel()
        await asyncio.wait([following])

    async def _converse(self, link: Link) -> None:
        for kind in _KINDS:
            topic = f"{self.base}/v1/{self.node}/{kind}"
            if not await link.subscribe(topic):
                raise PermissionError(f"the broker lets us not hear {topic}")
        self.is_connected = True
        async for message in link.hear():
            assert isinstance(message.payload, bytes)
            self.on_message(message.topic.value, message.payload)

    def _lost(self, error: Exception) -> None:
        self.is_connected = False
        self.num_failures += 1
        self.last_error = str(error) or type(error).__name__
