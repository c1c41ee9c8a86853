"""One connection to the broker: how it is opened, and how it ends in every case.

aiomqtt 2.5 lacks a way to let go of a broker that does not answer; `_Client` adds it.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import urlsplit

from aiomqtt import Client, MqttCodeError, MqttError, ProtocolVersion, Will
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from adaptive_kv.config import MqttSettings
from adaptive_kv.errors import ConfigError
from adaptive_kv.mqtt.topics import Topics

_SESSION_EXPIRY_S = 60
"""Longer than any will delay: a will is sent at the latest when its session ends."""
_TURNS = 50
_VERSION_REFUSED = {1, 132}

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
    """A client that can be left at once, whatever the broker does."""

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
        for end in (self._connected, self._disconnected):
            if end.done() and not end.cancelled():
                end.exception()  # asyncio would complain that nobody looked


class Link:
    """An open connection. Everything is confirmed by the broker, or `MqttError` is raised."""

    def __init__(self, client: Client, version: ProtocolVersion) -> None:
        self._client = client
        self._is_v5 = version is ProtocolVersion.V5

    async def say(
        self, topic: str, text: str, *, retain: bool, expiry_s: float | None = None
    ) -> None:
        """Publish. After `expiry_s` a broker that speaks MQTT 5 forgets it."""
        lives = {} if expiry_s is None else {"MessageExpiryInterval": max(1, round(expiry_s))}
        properties = _properties(PacketTypes.PUBLISH, **lives) if self._is_v5 else None
        await self._client.publish(topic, text, qos=1, retain=retain, properties=properties)

    async def until_lost(self) -> None:
        """Raise `MqttError` once the connection is lost; a publish would only time out."""
        try:
            async for _ in self._client.messages:
                pass
        except MqttError as error:
            raise MqttError(f"the connection was lost: {error.__cause__ or error}") from None


@asynccontextmanager
async def connected(
    broker: Broker, topics: Topics, version: ProtocolVersion, timing: Timing
) -> AsyncIterator[Link]:
    """A connection whose last will is `offline`.

    Leaving the block well says goodbye, any other way lets the broker send the will. Raises
    `MqttError`, or `OSError` and `UnicodeError` for what cannot be resolved.
    """
    client = _client(broker, topics, version, timing)
    try:
        await client.__aenter__()
        yield Link(client, version)
        await client.leave()
    finally:
        await client.drop()


def _client(broker: Broker, topics: Topics, version: ProtocolVersion, timing: Timing) -> _Client:
    is_v5 = version is ProtocolVersion.V5
    # A session that lives on keeps a quick restart from being told as `offline`.
    session = _properties(PacketTypes.CONNECT, SessionExpiryInterval=_SESSION_EXPIRY_S)
    delay = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=timing.will_delay_s)
    will = Will(topics.availability, "offline", qos=1, retain=True)
    return _Client(
        broker.host,
        broker.port,
        username=broker.username,
        password=broker.password,
        tls_context=broker.tls,
        identifier=topics.client_id,
        protocol=version,
        will=replace(will, properties=delay) if is_v5 else will,
        properties=session if is_v5 else None,
        clean_session=None if is_v5 else True,
        clean_start=False if is_v5 else MQTT_CLEAN_START_FIRST_ONLY,
        timeout=timing.answer_s,
        keepalive=timing.keepalive_s,
        max_queued_incoming_messages=1,
        logger=_silent,
    )


def next_version(
    version: ProtocolVersion, error: BaseException, *, is_v5_known: bool
) -> ProtocolVersion:
    """What to try after `error` where a connection was not accepted.

    Brokers that know only MQTT 3.1.1 refuse MQTT 5 or go silent. One that is frozen is silent
    too: silence says nothing once it has spoken MQTT 5.
    """
    if isinstance(error, MqttCodeError):
        code = error.rc.value if isinstance(error.rc, ReasonCode) else error.rc
        is_doubtful = code in _VERSION_REFUSED
    else:
        is_doubtful = isinstance(error, MqttError) and not is_v5_known
    if is_doubtful and version is ProtocolVersion.V5:
        return ProtocolVersion.V311
    return ProtocolVersion.V5


def _properties(kind: int, **values: int) -> Properties:
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties
