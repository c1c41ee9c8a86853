"""What is said over a connection, and in which order.

    worker -- appends --> EventLog -- read by cursor --> event
    worker -- replaces -> Status ---- latest value ----> state
    reload -- replaces -> Retained -- latest value ----> info, discovery
    broker -- commands -> Commands -- answers ---------> cmd-result

Nobody who fills these waits for a broker.
"""

import time
from collections.abc import Callable

from aiomqtt import Message

from adaptive_kv.config import MqttSettings
from adaptive_kv.documents import DocumentMaker, InfoDocument
from adaptive_kv.events import EventLog, Recorded
from adaptive_kv.mqtt.commands import Commands
from adaptive_kv.mqtt.discovery import discovery, is_ours
from adaptive_kv.mqtt.link import Link
from adaptive_kv.mqtt.outbox import EventCursor, Retained, StatePace
from adaptive_kv.mqtt.topics import Topics

_HEARTBEATS_TO_EXPIRY = 3


class Teller:
    """Knows what this node has to say, and what of it was said.

    All that talks raises `MqttError` where the connection is lost; what was under way is said
    again over the next one.
    """

    def __init__(
        self,
        settings: MqttSettings,
        topics: Topics,
        documents: DocumentMaker,
        events: EventLog,
        commands: Commands | None,
        on_denied: Callable[[str], None],
    ) -> None:
        self._is_announced = settings.homeassistant
        self._is_discovery_sought = False
        self._expiry_s = _HEARTBEATS_TO_EXPIRY * settings.heartbeat_s
        self._topics = topics
        self._documents = documents
        self._commands = commands
        self._on_denied = on_denied
        self._cursor = EventCursor(events)
        self._pace = StatePace(settings.heartbeat_s)
        self._retained = Retained()

    def replace_info(self, info: InfoDocument) -> None:
        """Say another info from now on; any thread."""
        self._retained.put(self._topics.info, info.to_json())
        if self._is_announced:
            found = discovery(self._topics, info, expiry_s=self._expiry_s)
            self._retained.put(self._topics.discovery, found.to_json())

    async def greet(self, link: Link) -> None:
        """Say `online`; what the broker was told over another connection, it may have lost."""
        await self._say(link, self._topics.availability, "online", retain=True)
        self._retained.forget()
        self._pace.forget()
        if self._commands is not None and not await link.subscribe(self._topics.commands):
            self._on_denied(self._topics.commands)
        if not self._is_announced and not self._is_discovery_sought:
            # But once, and without complaint: some brokers hang up on those who may not.
            self._is_discovery_sought = True
            await link.subscribe(self._topics.discovery)

    def take(self, message: Message) -> None:
        """Something was heard: a command, or how an earlier run was announced."""
        topic, payload = message.topic.value, message.payload
        assert isinstance(payload, bytes)
        if topic == self._topics.discovery:
            if is_ours(payload) and not self._is_announced:
                self._retained.put(topic, "")
        elif self._commands is not None:
            name = topic.rpartition("/cmd/")[2]
            self._commands.take(name, payload, is_retained=message.retain)

    async def tell(self, link: Link) -> None:
        """Say all that is new."""
        pending = self._cursor.pending()
        self._count()
        await self._tell_retained(link)
        await self._tell_results(link)
        await self._tell_state(link)
        for recorded in pending:
            if self._cursor.admits(recorded):
                await self._tell_event(link, recorded)
                await self._tell_state(link)
        self._count()

    def rest_s(self) -> float:
        """How long the pace still keeps any state back."""
        return self._pace.rest_s(time.monotonic())

    async def part(self, link: Link) -> None:
        """Say `offline`."""
        await self._say(link, self._topics.availability, "offline", retain=True)

    def miss(self) -> None:
        """There is no connection: count what is lost meanwhile."""
        self._cursor.pending()
        self._count()

    def _count(self) -> None:
        """Let the state tell how many events were not told."""
        counts = self._cursor.num_dropped, self._cursor.num_suppressed
        if counts != (self._documents.dropped_events, self._documents.suppressed_events):
            self._documents.dropped_events, self._documents.suppressed_events = counts
            self._pace.forget()

    async def _tell_retained(self, link: Link) -> None:
        for topic, text in self._retained.untold():
            await self._say(link, topic, text, retain=True)
            self._retained.told(topic, text)

    async def _tell_results(self, link: Link) -> None:
        while self._commands is not None and self._commands.untold:
            result = self._commands.untold[0]
            await self._say(link, self._topics.result, result.to_json())
            self._commands.told(result)

    async def _tell_event(self, link: Link, recorded: Recorded) -> None:
        num_suppressed = self._cursor.num_suppressed_before
        text = self._documents.event(recorded, num_suppressed=num_suppressed).to_json()
        if await self._say(link, self._topics.event, text):
            self._cursor.delivered(recorded)
        else:
            self._cursor.denied(recorded)

    async def _tell_state(self, link: Link) -> None:
        status = self._documents.status()
        if not self._pace.is_due(status, time.monotonic()):
            return
        text, topic = self._documents.state().to_json(), self._topics.state
        self._pace.published(status, time.monotonic())
        await self._say(link, topic, text, retain=True, expiry_s=self._expiry_s)
        self._pace.published(status, time.monotonic())

    async def _say(
        self,
        link: Link,
        topic: str,
        text: str,
        *,
        retain: bool = False,
        expiry_s: float | None = None,
    ) -> bool:
        is_taken = await link.say(topic, text, retain=retain, expiry_s=expiry_s)
        if not is_taken:
            self._on_denied(topic)
        return is_taken
