"""The task that owns the connection: reconnects for ever, tells the truth after every connect.

The worker never waits for any of this; what the log lets go while the broker is away is counted.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from aiomqtt import MqttError

from adaptive_kv.config import MqttSettings
from adaptive_kv.documents import DocumentMaker, InfoDocument
from adaptive_kv.events import EventLog
from adaptive_kv.mqtt.commands import Commands, Orders
from adaptive_kv.mqtt.link import Broker, Link, Timing
from adaptive_kv.mqtt.teller import Teller
from adaptive_kv.mqtt.topics import Topics
from adaptive_kv.mqtt.upkeep import rest, stay_connected

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherStatus:
    """Whether the broker hears us. `since_s` is wall clock, seconds since the epoch."""

    is_connected: bool
    since_s: float
    last_error: str | None = None
    """Why it does not, or did not the last time."""


class Publisher:
    """Publishes availability, info, state and events of one node, and takes commands for it.

    `run` it as one task of the loop that serves HTTP. Commands are taken where the settings permit
    them and there are `orders`. Raises `ConfigError` for a `ca_file` that cannot be used.
    """

    def __init__(
        self,
        settings: MqttSettings,
        *,
        info: InfoDocument,
        documents: DocumentMaker,
        events: EventLog,
        orders: Orders | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._broker = Broker.of(settings) if settings.url else None
        self._topics = Topics(settings.base, settings.node)
        self._commands = Commands(orders) if orders and settings.commands else None
        self._teller = Teller(
            settings, self._topics, documents, events, self._commands, self._note_denied
        )
        self._teller.replace_info(info)
        self._timing = timing or Timing()
        self._stop = asyncio.Event()
        self._is_outage_told = False
        self._denied: set[str] = set()
        self.status = PublisherStatus(is_connected=False, since_s=time.time())

    async def run(self) -> None:
        """Publish until cancelled, then say `offline`; return at once where no URL is set."""
        if self._broker is None:
            return
        work = asyncio.create_task(self._work(self._broker), name="mqtt-publisher")
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self._stop.set()
            if self.status.is_connected:
                await asyncio.wait([work], timeout=self._timing.farewell_s)
            raise
        finally:
            work.cancel()
            await asyncio.wait([work])
            if self._commands is not None:
                await self._commands.close()
            self._note(is_connected=False)

    def replace_info(self, info: InfoDocument) -> None:
        """Publish another info, now or as soon as a broker is there; any thread."""
        self._teller.replace_info(info)

    async def _work(self, broker: Broker) -> None:
        await stay_connected(
            broker,
            self._topics.client_id,
            self._timing,
            converse=partial(self._converse, broker),
            on_lost=self._lost,
            stop=self._stop,
            will_topic=self._topics.availability,
        )

    async def _converse(self, broker: Broker, link: Link) -> None:
        """Hear and tell everything until stopped; raise as soon as the connection is lost."""
        self._found(broker, link)
        try:
            async with asyncio.TaskGroup() as tasks:
                hearing = tasks.create_task(self._hear(link))
                await self._talk(link)
                hearing.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _hear(self, link: Link) -> None:
        async for message in link.hear():
            self._teller.take(message)

    async def _talk(self, link: Link) -> None:
        await self._teller.greet(link)
        while not self._stop.is_set():
            await self._teller.tell(link)
            await rest(self._stop, self._timing.poll_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timing.farewell_s / 2):
                await asyncio.sleep(self._teller.rest_s())
                await self._teller.tell(link)
        await self._teller.part(link)

    def _found(self, broker: Broker, link: Link) -> None:
        _log.info("mqtt_connected", host=broker.host, port=broker.port, version=link.version.name)
        self._note(is_connected=True)
        self._is_outage_told = False
        self._denied.clear()

    def _lost(self, error: Exception) -> None:
        """Tell of an outage once, however many retries it takes."""
        why = str(error) or type(error).__name__
        if not self._is_outage_told:
            is_ours = not isinstance(error, MqttError | OSError | UnicodeError)
            _log.warning("mqtt_lost", error=why, exc_info=is_ours)
        self._is_outage_told = True
        self._note(is_connected=False, error=why)
        self._teller.miss()

    def _note_denied(self, topic: str) -> None:
        """Tell of a topic that is not ours once per connection."""
        if topic not in self._denied:
            self._denied.add(topic)
            _log.error("mqtt_denied", topic=topic)
            self._note(is_connected=True, error=f"the broker denies us {topic}")

    def _note(self, *, is_connected: bool, error: str | None = None) -> None:
        then = self.status
        self.status = PublisherStatus(
            is_connected=is_connected,
            since_s=time.time() if is_connected != then.is_connected else then.since_s,
            last_error=error or then.last_error,
        )
