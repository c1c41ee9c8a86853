"""Whether a broker lets this node say and hear what it has to, and nobody else is this node.

A broker confirms what it denies, so that only what comes back proves anything. A node that is
online is listened to; on the topics of one that is not, something is said: `offline`, a ping, and
messages without content, none of which the broker keeps.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from aiomqtt import Message, MqttError, ProtocolVersion

from adaptive_kv.config import MqttSettings
from adaptive_kv.documents import CommandResult
from adaptive_kv.errors import AdaptiveKVError
from adaptive_kv.mqtt.link import Broker, Link, Timing, connected
from adaptive_kv.mqtt.topics import Topics
from adaptive_kv.mqtt.upkeep import next_version

_TIMING = Timing()
_POLL_S = 0.02
_PING_LIVES_S = 30.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited, in seconds."""

    kept_s: float = 1.0
    """For what the broker has kept."""
    echo_s: float = 5.0
    """For what was said to come back."""
    listen_s: float = 5.0
    """For strangers: two boxes that push each other out are both heard within this time."""


class CheckupError(AdaptiveKVError):
    """What is wrong between this node and its broker, and what could be done."""


async def check_broker(
    settings: MqttSettings, own_boot_id: str | None, patience: Patience | None = None
) -> str:
    """What is well, in words. `own_boot_id` is that of the service that runs here, if one does.

    Raises `CheckupError`, or `ConfigError` for a `ca_file` that cannot be used.
    """
    topics, broker = Topics(settings.base, settings.node), Broker.of(settings)
    # Under the node's own name we would take the connection from a service that runs.
    client_id = f"{topics.client_id}-doctor"
    try:
        version = await _spoken_version(broker, client_id)
        async with connected(broker, client_id, version, _TIMING) as link:
            checkup = _Checkup(settings, topics, link, patience or Patience())
            return await checkup.run(own_boot_id)
    except (MqttError, OSError, UnicodeError) as error:
        raise CheckupError(str(error) or type(error).__name__) from None


async def _spoken_version(broker: Broker, client_id: str) -> ProtocolVersion:
    version = ProtocolVersion.V5
    try:
        async with connected(broker, client_id, version, _TIMING):
            return version
    except MqttError as error:
        version = next_version(version, error, is_v5_known=False)
        if version is ProtocolVersion.V5:
            raise
    return version


@dataclass(slots=True)
class _Checkup:
    """One look at one node, over one connection."""

    settings: MqttSettings
    topics: Topics
    link: Link
    patience: Patience
    heard: list[Message] = field(default_factory=list)

    async def run(self, own_boot_id: str | None) -> str:
        hearing = asyncio.create_task(self._hear())
        try:
            return await self._look(own_boot_id)
        finally:
            hearing.cancel()
            await asyncio.wait([hearing])

    async def _hear(self) -> None:
        with suppress(MqttError):  # whoever waits in vain says so
            async for message in self.link.hear():
                self.heard.append(message)

    async def _look(self, own_boot_id: str | None) -> str:
        for topic in (self.topics.all, *self._discovery()):
            if not await self.link.subscribe(topic):
                raise CheckupError(f"the broker denies us to hear {topic}")
        await self._comes_true(
            lambda: self._last(self.topics.availability) is not None, self.patience.kept_s
        )
        if self._last(self.topics.availability) == b"online":
            return await self._listen(own_boot_id)
        return await self._speak()

    async def _listen(self, own_boot_id: str | None) -> str:
        """The node is online: it must be the one that runs here, and be heard in full."""
        node, boot_ids = self.topics.node, set[str]()

        def has_stranger() -> bool:
            boot_ids.update(filter(None, map(_boot_id, self.heard)))
            return bool(boot_ids - {own_boot_id})

        if await self._comes_true(has_stranger, self.patience.listen_s):
            strange = ", ".join(sorted(boot_ids - {own_boot_id}))
            here = f"boot {own_boot_id} runs" if own_boot_id else "no service answers"
            raise CheckupError(
                f"{node} is online as boot {strange}, but here {here}: is there another box with "
                "this mqtt.node, or has a service just died?"
            )
        missing = [t for t in (self.topics.info, self.topics.state) if self._last(t) is None]
        if missing:
            raise CheckupError(f"{node} is online, but nothing comes on {_named(missing)}")
        if self.settings.commands:
            await self._ping()
        return f"returns what {node} publishes" + (
            ", which obeys" if self.settings.commands else ""
        )

    async def _ping(self) -> None:
        """Have the service that runs answer."""
        id_ = _word()
        await self._say({self.topics.command("ping"): _ping(id_)})

        def is_answered() -> bool:
            return id_.encode() in (self._last(self.topics.result) or b"")

        if not await self._comes_true(is_answered, self.patience.echo_s):
            raise CheckupError(
                f"{self.topics.node} does not answer a ping: may it hear {self.topics.commands}?"
            )

    async def _speak(self) -> str:
        """The node is not there: say something in its place, and see what comes back."""
        said = {
            self.topics.availability: "offline",
            self.topics.info: "",
            self.topics.state: "",
            self.topics.event: "",
            self.topics.result: CommandResult(id=_word(), status="ok", error=None).to_json(),
            **dict.fromkeys(self._discovery(), ""),
        }
        if self.settings.commands:
            said[self.topics.command("ping")] = _ping(_word())
        self.heard.clear()
        await self._say(said)
        lost: list[str] = []

        def are_back() -> bool:
            lost[:] = [topic for topic, text in said.items() if self._last(topic) != text.encode()]
            return not lost

        if not await self._comes_true(are_back, self.patience.echo_s):
            raise CheckupError(
                f"took our message but did not return it on {_named(lost)}: may this node write "
                "and read there?"
            )
        return f"returns what {self.topics.node} says"

    async def _say(self, said: Mapping[str, str]) -> None:
        """Everything; what the broker says that it denies is an error at once."""
        denied = [
            topic
            for topic, text in said.items()
            if not await self.link.say(topic, text, retain=False)
        ]
        if denied:
            raise CheckupError(f"denies us to write {_named(denied)}")

    def _discovery(self) -> tuple[str, ...]:
        return (self.topics.discovery,) if self.settings.homeassistant else ()

    def _last(self, topic: str) -> bytes | None:
        """What was heard last on a topic."""
        payloads = [heard.payload for heard in self.heard if heard.topic.value == topic]
        return payloads[-1] if payloads and isinstance(payloads[-1], bytes) else None

    async def _comes_true(self, claim: Callable[[], bool], within_s: float) -> bool:
        until_s = time.monotonic() + within_s
        while not claim() and time.monotonic() < until_s:
            await asyncio.sleep(_POLL_S)
        return claim()


def _ping(id_: str) -> str:
    return json.dumps({"id": id_, "not_after": time.time() + _PING_LIVES_S})


def _word() -> str:
    return f"doctor-{secrets.token_hex(8)}"


def _boot_id(message: Message) -> str | None:
    """Of the boot that a document is about."""
    try:
        found = json.loads(message.payload) if isinstance(message.payload, bytes) else None
    except ValueError:
        return None
    boot_id = found.get("boot_id") if isinstance(found, dict) else None
    return boot_id if isinstance(boot_id, str) else None


def _named(topics: list[str]) -> str:
    return ", ".join(topics)
