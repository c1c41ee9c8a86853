"""What is done when memory runs out: go down the ladder, and park what still does not fit."""

import time
from collections.abc import Callable

from adaptive_kv.cache.store import PageStore
from adaptive_kv.controller import Controller, Orders
from adaptive_kv.engine.batch import OutOfMemory, check_shortage
from adaptive_kv.engine.gauge import Gauge
from adaptive_kv.engine.scheduler import Scheduler
from adaptive_kv.engine.switcher import Switcher
from adaptive_kv.events import Event, OomAverted, SequenceParked
from adaptive_kv.policy import Reading

_RETAINED_SHARE = 0.5
"""Of the room for the cache, how much of it ended sequences may hold: what they keep from others
who want memory suddenly is no more than what is free for these at once."""


class Rescue:
    """Makes room, whatever the policy says; `clock` gives monotonic seconds."""

    def __init__(
        self,
        store: PageStore,
        controller: Controller,
        scheduler: Scheduler,
        switcher: Switcher,
        gauge: Gauge,
        emit: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_short = False
        """Whether something was parked since the last step that went well."""
        self._averted: list[OomAverted] = []
        """What may be told once the step goes well."""
        self._store = store
        self._controller = controller
        self._scheduler = scheduler
        self._switcher = switcher
        self._gauge = gauge
        self._emit = emit
        self._clock = clock

    def order(self, orders: Orders, reading: Reading) -> None:
        """Set what was ordered: how much slabs may take, and the modes, which pages follow."""
        self._limit(orders.allowance_bytes, reading.memory.headroom_bytes)
        changing = {
            sequence: mode
            for sequence in self._scheduler.running
            if (mode := orders.modes.get(sequence.id, sequence.mode)) != sequence.mode
        }
        self._switcher.order(orders.mode, changing, orders.reason_text)

    def _limit(self, allowance_bytes: int, headroom_bytes: int) -> None:
        """Until the next reading: what may be taken from the device, and what may be retained.

        The reading counts what healing and prefixes hold as free, which it only is once it is given
        back; where that has broken the floor, it goes now.
        """
        budget = self._store.budget
        idle_bytes = self._scheduler.shadow_bytes + budget.reclaimable_bytes
        budget.allow((allowance_bytes or min(0, headroom_bytes)) - idle_bytes)
        if headroom_bytes < idle_bytes:
            self._store.reclaim(idle_bytes - headroom_bytes)
        self._store.prefixes.shrink(budget.room_bytes() * _RETAINED_SHARE)

    def make_room(
        self, shortage: OutOfMemory, read: Callable[[], Reading], *, is_step: bool = True
    ) -> None:
        """Go down the ladder, all pages at once, as far as it goes or until that much is freed.

        Where a step is tried again, its end tells whether that was enough.
        """
        before_bytes = self._taken_bytes(shortage)
        self._drop_shadows()
        self._store.reclaim(shortage.needed_bytes)
        freed_bytes = before_bytes - self._taken_bytes(shortage)
        if freed_bytes < shortage.needed_bytes:
            self._finish_shrinking()
            freed_bytes = before_bytes - self._taken_bytes(shortage)
        while freed_bytes < shortage.needed_bytes:
            reading = read()
            orders = self._controller.step_down(reading)
            if orders is None:
                break
            self.order(orders, reading)
            self._convert_everything()
            freed_bytes = before_bytes - self._taken_bytes(shortage)
        if is_step or freed_bytes >= shortage.needed_bytes:
            self._note(shortage, freed_bytes)

    def stop_healing(self, shortage: OutOfMemory) -> None:
        """Give back what healing holds, before anybody goes down because of it."""
        freed_bytes = self._scheduler.shadow_bytes
        self._drop_shadows()
        self._note(shortage, freed_bytes)

    def park_last(self, needed_bytes: int, *, is_by_limit: bool = False) -> None:
        """Drop the pages of the sequence that is last in line; it waits and resumes later.

        What our own limits refused they will refuse again until there is more room.
        """
        sequence = self._scheduler.last_in_line()
        if sequence is None:
            return
        used_bytes = self._store.used_bytes
        sequence.drop()
        freed_bytes = used_bytes - self._store.used_bytes
        self._switcher.forget(sequence)
        self._scheduler.park(sequence, self._clock())
        self._store.compact(needed_bytes)
        sequence.too_little_bytes = self._store.room_bytes() if is_by_limit else 0
        self.is_short = True
        self._averted.clear()
        self._emit(
            SequenceParked(
                sequence=sequence.id,
                num_tokens=len(sequence.tokens),
                freed_bytes=freed_bytes,
                reason="memory",
            )
        )

    def settle(self) -> None:
        """A step went well: what it had lacked before it was tried again is averted."""
        self.is_short = False
        for event in self._averted:
            self._emit(event)
        self._averted.clear()

    def _note(self, shortage: OutOfMemory, freed_bytes: int) -> None:
        self._averted.append(
            OomAverted(
                to_mode=self._controller.mode,
                needed_bytes=shortage.needed_bytes,
                freed_bytes=max(0, freed_bytes),
            )
        )

    def _drop_shadows(self) -> None:
        for sequence in self._scheduler.running:
            sequence.drop_shadow()

    def _taken_bytes(self, shortage: OutOfMemory) -> int:
        """How much is taken of what was short."""
        return self._store.used_bytes if shortage.is_of_pages else self._store.held_bytes

    def _finish_shrinking(self) -> None:
        """Before anybody goes lower, what is on its way down arrives, new tokens included."""
        if any(self._gauge.excess_bytes(s) for s in self._scheduler.running):
            self._convert_everything()

    def _convert_everything(self) -> None:
        try:
            self._switcher.advance(self._scheduler.running, max_s=None)
        except RuntimeError as error:
            check_shortage(error)
