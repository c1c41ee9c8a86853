"""Telling systemd, while the service runs, that its worker works and how it fares."""

import asyncio
import os
from collections.abc import Callable

from adaptive_kv.cli.notify import is_supervised, notify_news
from adaptive_kv.engine.status import Health, Status

_PERIOD_S = 1.0
_PINGS_PER_TIMEOUT = 4


async def supervise(status: Callable[[], Status]) -> None:
    """Until cancelled: STATUS= where it changed, and a ping where the worker took a step.

    An idle worker steps too, several times a second. So a ping says that both the worker and this
    loop are alive: neither one that is stuck in a step nor one that hangs while it should wait for
    work gets another.
    """
    if not is_supervised():
        return
    period_s, last_step, last_text = _period_s(), -1, ""
    while True:
        now = status()
        if now.step != last_step and now.health is not Health.FAILED:
            notify_news("WATCHDOG=1")
            last_step = now.step
        text = status_text(now)
        if text != last_text:
            notify_news(f"STATUS={text}")
            last_text = text
        await asyncio.sleep(period_s)


def status_text(now: Status) -> str:
    """In a line: `int4 (memory is short), 3 running, 1 waiting, 41 tokens/s, 0.4 GiB free`."""
    health = "" if now.health is Health.OK else f"{now.health}: "
    pinned = "pinned" if now.pinned else now.reason_text
    return (
        f"{health}{now.mode}{f' ({pinned})' if pinned else ''}, {now.load.running} running, "
        f"{now.load.waiting} waiting, {now.load.tokens_per_s:.0f} tokens/s, "
        f"{now.memory.free_bytes / 2**30:.1f} GiB free"
    )


def _period_s() -> float:
    """As often as the watchdog of the unit asks for, and now and then for the text."""
    timeout_usec = os.environ.get("WATCHDOG_USEC")
    if not timeout_usec:
        return _PERIOD_S
    return min(_PERIOD_S, int(timeout_usec) / 10**6 / _PINGS_PER_TIMEOUT)
