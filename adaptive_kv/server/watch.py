"""Looks many times a second at what a scrape, or a page opened too late, would miss."""

import asyncio
import time
from collections.abc import Callable

from adaptive_kv.engine.status import Status
from adaptive_kv.events import EventLog
from adaptive_kv.server.counting import EventCounts
from adaptive_kv.server.history import PERIOD_S, History

_LOOK_S = 0.1


class Watch:
    """`run` it in the loop that serves; everything here belongs to its thread.

    `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        status: Callable[[], Status],
        events: EventLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = EventCounts(events)
        self.history = History()
        self.under_floor_s = 0.0
        """How long less than the floor was free, so far."""
        self._status = status
        self._clock = clock
        self._looked_s = clock()
        self._noted_s = float("-inf")
        self._is_under = False

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_S)

    def look(self) -> None:
        """Take in what is true now; until then what was true at the last look has lasted."""
        now_s, status = self._clock(), self._status()
        if self._is_under:
            self.under_floor_s += now_s - self._looked_s
        self._is_under = status.memory.headroom_bytes < 0
        self._looked_s = now_s
        self.counts.catch_up()
        if now_s - self._noted_s >= PERIOD_S:
            self._noted_s = now_s
            self.history.note(status)
