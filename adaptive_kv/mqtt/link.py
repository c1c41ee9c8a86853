"""One connection to the broker: how it is opened, and how it ends in every case.

aiomqtt 2.5 lacks a way to let go of a broker that does not answer, and hides that a broker denies
a message; `_Client` adds both.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import urlsplit

from aiomqtt import Client, Message, MqttError, ProtocolVersion, Will
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from adaptive_kv.config import MqttSettings
from adaptive_kv.errors import ConfigError

_SESSION_EXPIRY_S = 60
"""Longer than any will delay: a will is sent at the latest when its session ends."""
_MAX_PACKET_BYTES = 256 * 2**10
"""No document comes near it; a broker that speaks MQTT 5 keeps anything larger from us."""
_MAX_COMMANDS, _MAX_DOCUMENTS = 64, 100_000
"""Messages that came in and are not dealt with yet; more are lost. A node hears commands; who has
no last will hears documents, and all that are kept come at once."""
_TURNS = 50
_FAILED = 128

# The libraries tell of every failed read; the publisher tells of an outage once.
_silent = logging.getLogger(f"{__name__}.wire")
_silent.setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How patient the publisher is, in seconds."""

    answer_s: float = 5.0
    """For the broker to accept a connection or to confirm a message."""
    keepalive_s: int = 10
    will_delay_s: int = 5
    """How long a broker that speaks MQTT 5 waits before it says `offline` for us."""
    first_retry_s: float = 0.2
    longest_retry_s: float = 60.0
    longest_flap_s: float = 3.0
    """Between connections that are accepted and then soon lost."""
    stable_s: float = 10.0
    """A connection that lasted this long makes the next retry quick again."""
    farewell_s: float = 4.0
    """For the last words before the end."""
    poll_s: float = 0.1
    """How often the event log and the status are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where the broker is and who we are to it."""

    host: str
    port: int
    username: str | None
    password: str | None
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, settings: MqttSettings) -> Self:
        """Read the settings, which have a URL. Raises `ConfigError` for a bad `ca_file`."""
        url = urlsplit(settings.url or "")
        is_tls = url.scheme == "mqtts"
        return cls(
            host=url.hostname or "",
            port=url.port or (8883 if is_tls else 1883),
            username=settings.username,
            password=settings.password.get_secret_value() if settings.password else None,
            tls=_tls(settings) if is_tls else None,
        )


def _tls(settings: MqttSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise ConfigError(f"mqtt.ca_file {settings.ca_file} cannot be used: {error}") from error


class _Client(Client):
    """A client that can be left at once, whatever the broker does, and that knows what it denies.

    Whoever uses it publishes one message at a time.
    """

    is_denied = False
    """Whether the broker refused the last message that it confirmed."""

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        self.is_denied = reason_code.value >= _FAILED
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def _on_disconnect(self, *arguments: Any) -> None:
        """aiomqtt stumbles over a connection that was given up before it was accepted.

        One that is lost in the moment in which it is accepted it forgets about.
        """
        if not self._connected.cancelled():
            super()._on_disconnect(*arguments)
        self._look()

    async def leave(self) -> None:
        """Say goodbye to the broker: there will be no last will."""
        with suppress(MqttError):
            await self.__aexit__(None, None, None)

    async def drop(self) -> None:
        """Close the socket without a word, if it is still open; the broker sends the last will.

        Shut down first, so that the libraries see an end of file and clean up by themselves.
        """
        connection = self._client.socket()
        if isinstance(connection, socket.socket):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for _ in range(_TURNS):
            if self._client.socket() is None:
                break
            await asyncio.sleep(0.01)
        self._look()

    def _look(self) -> None:
        """At what ended a connection: asyncio would complain that nobody has."""
        for end in (self._connected, self._disconnected):
            if end.done() and not end.cancelled():
                end.exception()


class Link:
    """An open connection. Everything is confirmed by the broker, or `MqttError` is raised."""

    def __init__(self, client: _Client, version: ProtocolVersion) -> None:
        self._client = client
        self.version = version

    async def say(
        self, topic: str, text: str, *, retain: bool, expiry_s: float | None = None
    ) -> bool:
        """Publish; False where the broker says that we may not, which only MQTT 5 permits it.

        After `expiry_s` a broker that speaks MQTT 5 forgets the message.
        """
        is_v5 = self.version is ProtocolVersion.V5
        lives = {} if expiry_s is None else {"MessageExpiryInterval": max(1, round(expiry_s))}
        properties = _properties(PacketTypes.PUBLISH, **lives) if is_v5 else None
        await self._client.publish(topic, text, qos=1, retain=retain, properties=properties)
        return not self._client.is_denied

    async def subscribe(self, topic: str) -> bool:
        """Hear `topic`, wildcards welcome; False where the broker says that we may not.

        With MQTT 5, `retain` of a message is what its sender has said.
        """
        if self.version is ProtocolVersion.V5:
            options = SubscribeOptions(qos=1, retainAsPublished=True)
            codes = await self._client.subscribe(topic, options=options)
        else:
            codes = await self._client.subscribe(topic, qos=1)
        return all(code_value(code) < _FAILED for code in codes)

    async def hear(self) -> AsyncIterator[Message]:
        """What comes in. Raises `MqttError` once the connection is lost; a publish would only time
        out."""
        try:
            async for message in self._client.messages:
                yield message
        except MqttError as error:
            raise MqttError(f"the connection was lost: {error.__cause__ or error}") from None


@asynccontextmanager
async def connected(
    broker: Broker,
    client_id: str,
    version: ProtocolVersion,
    timing: Timing,
    *,
    will_topic: str | None = None,
) -> AsyncIterator[Link]:
    """A connection. One with a `will_topic`, whose last will is `offline`, outlives a restart.

    Leaving the block well says goodbye, any other way lets the broker send the will. Raises
    `MqttError`, or `OSError` and `UnicodeError` for what cannot be resolved.
    """
    client = _client(broker, client_id, version, timing, will_topic)
    try:
        await client.__aenter__()
        yield Link(client, version)
        await client.leave()
    finally:
        await client.drop()


def _client(
    broker: Broker,
    client_id: str,
    version: ProtocolVersion,
    timing: Timing,
    will_topic: str | None,
) -> _Client:
    is_v5, is_lasting = version is ProtocolVersion.V5, will_topic is not None
    # A session that lives on keeps a quick restart from being told as `offline`.
    lives = {"SessionExpiryInterval": _SESSION_EXPIRY_S} if is_lasting else {}
    session = _properties(PacketTypes.CONNECT, MaximumPacketSize=_MAX_PACKET_BYTES, **lives)
    return _Client(
        broker.host,
        broker.port,
        username=broker.username,
        password=broker.password,
        tls_context=broker.tls,
        identifier=client_id,
        protocol=version,
        will=_will(will_topic, timing, is_v5=is_v5) if will_topic is not None else None,
        properties=session if is_v5 else None,
        clean_session=None if is_v5 else True,
        clean_start=not is_lasting if is_v5 else MQTT_CLEAN_START_FIRST_ONLY,
        timeout=timing.answer_s,
        keepalive=timing.keepalive_s,
        max_queued_incoming_messages=_MAX_COMMANDS if is_lasting else _MAX_DOCUMENTS,
        logger=_silent,
    )


def _will(topic: str, timing: Timing, *, is_v5: bool) -> Will:
    will = Will(topic, "offline", qos=1, retain=True)
    delay = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=timing.will_delay_s)
    return replace(will, properties=delay) if is_v5 else will


def code_value(code: ReasonCode | int | None) -> int:
    """The number of a reason, in whatever form the libraries give it."""
    return code.value if isinstance(code, ReasonCode) else code or 0


def _properties(kind: int, **values: int) -> Properties:
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties
