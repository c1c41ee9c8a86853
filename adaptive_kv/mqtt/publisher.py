"""The task that owns the connection: reconnects for ever, tells the truth after every connect.

    worker -- appends --> EventLog -- read by cursor --> event
    worker -- replaces -> Status ---- latest value ----> state

The worker never waits for any of this; what the log lets go while the broker is away is counted.
"""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass

import structlog
from aiomqtt import MqttError, ProtocolVersion

from adaptive_kv.config import MqttSettings
from adaptive_kv.documents import DocumentMaker, InfoDocument
from adaptive_kv.events import EventLog, Recorded
from adaptive_kv.mqtt.link import Broker, Link, Timing, connected, next_version
from adaptive_kv.mqtt.outbox import EventCursor, StatePace
from adaptive_kv.mqtt.topics import Topics

_HEARTBEATS_TO_EXPIRY = 3
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherStatus:
    """Whether the broker hears us. `since_s` is wall clock, seconds since the epoch."""

    is_connected: bool
    since_s: float
    last_error: str | None = None
    """Why it does not, or did not the last time."""


class Publisher:
    """Publishes availability, info, state and events of one node.

    `run` it as one task of the loop that serves HTTP. Raises `ConfigError` for a `ca_file` that
    cannot be used.
    """

    def __init__(
        self,
        settings: MqttSettings,
        *,
        info: InfoDocument,
        documents: DocumentMaker,
        events: EventLog,
        timing: Timing | None = None,
    ) -> None:
        self._broker = Broker.of(settings) if settings.url else None
        self._topics = Topics(settings.base, settings.node)
        self._expiry_s = _HEARTBEATS_TO_EXPIRY * settings.heartbeat_s
        self._info, self._is_info_told = info, False
        self._documents = documents
        self._cursor = EventCursor(events)
        self._pace = StatePace(settings.heartbeat_s)
        self._timing = timing or Timing()
        self._stop = asyncio.Event()
        self._is_outage_told = False
        self._found_s = 0.0
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
            self._note(is_connected=False)

    def replace_info(self, info: InfoDocument) -> None:
        """Publish another info, now or as soon as a broker is there; any thread."""
        self._info, self._is_info_told = info, False

    async def _work(self, broker: Broker) -> None:
        version, num_failures, is_v5_known = ProtocolVersion.V5, 0, False
        while not self._stop.is_set():
            was_connected = False
            try:
                async with connected(broker, self._topics, version, self._timing) as link:
                    was_connected = True
                    is_v5_known |= version is ProtocolVersion.V5
                    self._found(broker, version)
                    await self._converse(link)
            except Exception as error:  # noqa: BLE001 - publishing must never end the service
                if was_connected:
                    version = ProtocolVersion.V5
                else:
                    version = next_version(version, error, is_v5_known=is_v5_known)
                num_failures = 0 if self._was_stable() else num_failures + 1
                self._lost(error)
                await self._rest(self._retry_s(num_failures))

    async def _converse(self, link: Link) -> None:
        """Tell everything until stopped; raise as soon as the connection is lost."""
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(link.until_lost())
                await self._talk(link)
                watching.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _talk(self, link: Link) -> None:
        await link.say(self._topics.availability, "online", retain=True)
        self._is_info_told = False
        await self._tell_info(link)
        self._pace.forget()
        while not self._stop.is_set():
            await self._tell_news(link)
            await self._rest(self._timing.poll_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timing.farewell_s / 2):
                await asyncio.sleep(self._pace.rest_s(time.monotonic()))
                await self._tell_news(link)
        await link.say(self._topics.availability, "offline", retain=True)

    async def _tell_info(self, link: Link) -> None:
        if not self._is_info_told:
            self._is_info_told = True
            await link.say(self._topics.info, self._info.to_json(), retain=True)

    async def _tell_news(self, link: Link) -> None:
        pending = self._pending()
        await self._tell_info(link)
        await self._tell_state(link)
        for recorded in pending:
            text = self._documents.event(recorded).to_json()
            await link.say(self._topics.event, text, retain=False)
            self._cursor.delivered(recorded)
            await self._tell_state(link)

    async def _tell_state(self, link: Link) -> None:
        status = self._documents.status()
        if not self._pace.is_due(status, time.monotonic()):
            return
        text = self._documents.state().to_json()
        self._pace.published(status, time.monotonic())
        await link.say(self._topics.state, text, retain=True, expiry_s=self._expiry_s)
        self._pace.published(status, time.monotonic())

    def _pending(self) -> list[Recorded]:
        """Events to be told; lets the state tell of those that were dropped."""
        pending = self._cursor.pending()
        if self._cursor.num_dropped != self._documents.dropped_events:
            self._documents.dropped_events = self._cursor.num_dropped
            self._pace.forget()
        return pending

    def _found(self, broker: Broker, version: ProtocolVersion) -> None:
        _log.info("mqtt_connected", host=broker.host, port=broker.port, version=version.name)
        self._note(is_connected=True)
        self._is_outage_told = False
        self._found_s = time.monotonic()

    def _lost(self, error: Exception) -> None:
        """Tell of an outage once, however many retries it takes."""
        why = str(error) or type(error).__name__
        if not self._is_outage_told:
            is_ours = not isinstance(error, MqttError | OSError | UnicodeError)
            _log.warning("mqtt_lost", error=why, exc_info=is_ours)
        self._is_outage_told = True
        self._note(is_connected=False, error=why)
        self._pending()

    def _note(self, *, is_connected: bool, error: str | None = None) -> None:
        then = self.status
        self.status = PublisherStatus(
            is_connected=is_connected,
            since_s=time.time() if is_connected != then.is_connected else then.since_s,
            last_error=error or then.last_error,
        )

    def _was_stable(self) -> bool:
        """Whether the connection that was just lost had lasted."""
        lasted_s = time.monotonic() - self._found_s
        return self.status.is_connected and lasted_s >= self._timing.stable_s

    def _retry_s(self, num_failures: int) -> float:
        """Full jitter, so that a fleet does not return in step."""
        timing = self._timing
        ceiling_s = min(timing.longest_retry_s, timing.first_retry_s * 2.0 ** min(num_failures, 30))
        return random.uniform(0.0, ceiling_s)  # noqa: S311 - no secret

    async def _rest(self, duration_s: float) -> None:
        """Sleep, but not past the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(duration_s):
                await self._stop.wait()
