"""Who may start: waiting sequences, as soon as memory has room for all that they will need."""

import time
from collections.abc import Callable

from adaptive_kv.cache.store import PageStore
from adaptive_kv.controller import Controller
from adaptive_kv.engine import refusals
from adaptive_kv.engine.gauge import MIN_STEP_TOKENS, Gauge
from adaptive_kv.engine.scheduler import Scheduler
from adaptive_kv.engine.sequence import Sequence, State
from adaptive_kv.errors import Refusal
from adaptive_kv.events import Event, Oom, SequenceResumed
from adaptive_kv.policy import CacheMode

_RETRY_S = 1.0
"""How long a sequence that did not fit even alone waits before it is tried again."""


class Admission:
    """Lets sequences in; `clock` gives monotonic seconds."""

    def __init__(
        self,
        scheduler: Scheduler,
        controller: Controller,
        store: PageStore,
        gauge: Gauge,
        emit: Callable[[Event], None],
        *,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_wait_s = max_wait_s
        self._scheduler = scheduler
        self._controller = controller
        self._store = store
        self._gauge = gauge
        self._emit = emit
        self._clock = clock

    def admit(self, mode: CacheMode) -> None:
        """Start what fits while the service is in `mode`."""
        for sequence in self._start(mode):
            if sequence.state is State.PARKED:
                self._report_resumed(sequence)
            sequence.state = State.RUNNING
            sequence.cache.mode = self._own_mode(sequence, mode)

    def _start(self, mode: CacheMode) -> list[Sequence]:
        started = self._scheduler.admit(lambda s: self._fits(s, mode))
        is_anybody_left = self._scheduler.waiting and not self._scheduler.running
        if is_anybody_left and self._store.budget.reclaimable_bytes:
            # What is retained holds a little more than itself: a spare page, places for scales.
            self._store.prefixes.shrink(0)
            started = self._scheduler.admit(lambda s: self._fits(s, mode))
        return started

    def expire(self, refuse: Callable[[Sequence, Refusal], None]) -> None:
        """Refuse what has waited or been parked for too long."""
        now_s = self._clock()
        for sequence in list(self._scheduler.waiting):
            if now_s - sequence.since_s > self._max_wait_s:
                refuse(sequence, self._why_not(sequence))

    def _why_not(self, sequence: Sequence) -> Refusal:
        """Memory, or only that others were first."""
        is_full = len(self._scheduler.running) >= self._scheduler.max_running
        if is_full and sequence.state is State.WAITING:
            return refusals.no_place(self._max_wait_s)
        needed_bytes = self._gauge.pages_bytes(sequence.mode, sequence)
        self._emit(Oom(sequence=sequence.id, needed_bytes=needed_bytes))
        return refusals.no_room(self._max_wait_s)

    def _fits(self, sequence: Sequence, mode: CacheMode) -> bool:
        """Whether a sequence fits beside those that run, with what these still need and a slab.

        Alone it may start if it would fit in any mode below: making room is then a matter of
        going down.
        """
        if sequence.is_stuck and self._clock() - sequence.stuck_s < _RETRY_S:
            return False
        own = self._own_mode(sequence, mode)
        if self._scheduler.running:
            spare_bytes = self._store.slab_bytes + self._gauge.promised_bytes()
            return self._fits_in(own, sequence, spare_bytes)
        below = [m for m in self._controller.ladder if sequence.permits(m)]
        return any(self._fits_in(m, sequence, 0) for m in (own, *below))

    def _fits_in(self, mode: CacheMode, sequence: Sequence, spare_bytes: int) -> bool:
        """Whether pages and a step's workspace of a sequence fit in a mode, `spare_bytes` apart."""
        num_new, needed_bytes = MIN_STEP_TOKENS, spare_bytes
        if mode.is_disabled:
            num_new = max(num_new, len(sequence.tokens))
        else:
            chunk_bytes = self._gauge.chunk_bytes(MIN_STEP_TOKENS)
            needed_bytes += self._gauge.pages_bytes(mode, sequence) + chunk_bytes
        return self._store.has_room(needed_bytes, self._gauge.step_bytes(num_new, sequence))

    def _own_mode(self, sequence: Sequence, mode: CacheMode) -> CacheMode:
        own = self._controller.mode_for(sequence.request.allow, mode)
        assert own is not None, "refused when it came in"
        return own

    def _report_resumed(self, sequence: Sequence) -> None:
        self._emit(
            SequenceResumed(
                sequence=sequence.id,
                num_tokens=len(sequence.tokens),
                parked_s=self._clock() - sequence.since_s,
            )
        )
