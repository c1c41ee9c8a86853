"""From one connection to the next, for ever, with patience and in step with nobody."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiomqtt import MqttCodeError, MqttError, ProtocolVersion

from adaptive_kv.mqtt.link import Broker, Link, Timing, code_value, connected

_VERSION_REFUSED = {1, 132}


class Backoff:
    """How long to wait before the next connection, with full jitter: a fleet returns out of step.

    A broker that was away for a while is back in touch after half as long again at most, but for a
    long outage, and one that keeps losing us after seconds. Times are monotonic seconds.
    """

    def __init__(self, timing: Timing, now_s: float) -> None:
        self._timing = timing
        self._lost_s, self._num_flaps = now_s, 0

    def lost(self, now_s: float, lasted_s: float) -> None:
        """A connection that lasted so long has just been lost."""
        self._lost_s = now_s
        self._num_flaps = 0 if lasted_s >= self._timing.stable_s else self._num_flaps + 1

    def ceiling_s(self, now_s: float) -> float:
        """The longest wait from `now_s` on."""
        timing = self._timing
        flap_s = min(timing.longest_flap_s, timing.first_retry_s * 2.0 ** min(self._num_flaps, 30))
        return min(timing.longest_retry_s, max(flap_s, (now_s - self._lost_s) / 2))

    def rest_s(self, now_s: float) -> float:
        """How long to wait this time."""
        return random.uniform(0.0, self.ceiling_s(now_s))  # noqa: S311 - no secret


async def stay_connected(
    broker: Broker,
    client_id: str,
    timing: Timing,
    *,
    converse: Callable[[Link], Awaitable[None]],
    on_lost: Callable[[Exception], None],
    stop: asyncio.Event,
    will_topic: str | None = None,
) -> None:
    """Have `converse` called with one connection after the other until `stop` is set.

    It returns only then. Whatever it raises ends its connection; `on_lost` is told, and of every
    attempt that failed.
    """
    version, is_v5_known = ProtocolVersion.V5, False
    backoff = Backoff(timing, time.monotonic())
    while not stop.is_set():
        found_s: float | None = None
        try:
            async with connected(broker, client_id, version, timing, will_topic=will_topic) as link:
                found_s = time.monotonic()
                is_v5_known |= version is ProtocolVersion.V5
                await converse(link)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next connection may be well
            now_s = time.monotonic()
            if found_s is None:
                version = next_version(version, error, is_v5_known=is_v5_known)
            else:
                version = ProtocolVersion.V5
                backoff.lost(now_s, lasted_s=now_s - found_s)
            on_lost(error)
            await rest(stop, backoff.rest_s(now_s))


def next_version(
    version: ProtocolVersion, error: BaseException, *, is_v5_known: bool
) -> ProtocolVersion:
    """What to try after `error` where a connection was not accepted.

    Brokers that know only MQTT 3.1.1 refuse MQTT 5 or go silent. One that is frozen is silent
    too: silence says nothing once it has spoken MQTT 5.
    """
    if isinstance(error, MqttCodeError):
        is_doubtful = code_value(error.rc) in _VERSION_REFUSED
    else:
        is_doubtful = isinstance(error, MqttError) and not is_v5_known
    if is_doubtful and version is ProtocolVersion.V5:
        return ProtocolVersion.V311
    return ProtocolVersion.V5


async def rest(stop: asyncio.Event, duration_s: float) -> None:
    """Sleep, but not past the end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(duration_s):
            await stop.wait()
