"""Who may start: waiting sequences, as soon as memory has room for all that they will need.

Who was parked starts again only where there is room for some more tokens of everybody, too, and has
been for a while or since somebody has ended: what memory takes back at once is not worth a prefill.
"""

import time
from collections.abc import Callable, Iterator

from adaptive_kv.cache.store import PageStore
from adaptive_kv.controller import Controller
from adaptive_kv.engine import refusals
from adaptive_kv.engine.gauge import MIN_STEP_TOKENS, Gauge
from adaptive_kv.engine.scheduler import Scheduler
from adaptive_kv.engine.sequence import Sequence, State
from adaptive_kv.errors import Refusal
from adaptive_kv.events import Event, Oom, SequenceResumed
from adaptive_kv.policy import CacheMode

_REST_S = 1.0
"""How long there must be room for a parked sequence; alone twice as long each time in vain."""
_MAX_REST_S = 60.0
_SPARE_TOKENS = 64
"""Room for so many more tokens of everybody who runs makes a parked sequence worth its prefill;
twice as many each time it is parked, so that those who grow do not park it over and over."""
_MAX_SPARE_TOKENS = 256


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
        self._start(mode)
        is_anybody_left = self._scheduler.waiting and not self._scheduler.running
        if is_anybody_left and self._store.budget.reclaimable_bytes:
            # What is retained holds a little more than itself: a spare page, places for scales.
            self._store.prefixes.shrink(0)
            self._start(mode)

    def _start(self, mode: CacheMode) -> None:
        for sequence in self._scheduler.admit(lambda s: self._may_start(s, mode)):
            if sequence.state is State.PARKED:
                self._report_resumed(sequence)
            sequence.state = State.RUNNING
            sequence.cache.mode = self._own_mode(sequence, mode)
            # At once: what it was let in for must not go before it is its own, too.
            sequence.cache.adopt()

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
        needed_bytes = self._gauge.new_bytes(sequence.mode, sequence)
        self._emit(Oom(sequence=sequence.id, needed_bytes=needed_bytes))
        return refusals.no_room(self._max_wait_s)

    def _may_start(self, sequence: Sequence, mode: CacheMode) -> bool:
        """Whether a sequence fits, and has for long enough if it was parked."""
        if not self._fits(sequence, mode):
            sequence.fits_since_s = None
            return False
        now_s = self._clock()
        if sequence.fits_since_s is None:
            sequence.fits_since_s = now_s
        if sequence.state is not State.PARKED:
            return True
        if self._scheduler.num_ends > sequence.num_ends_when_parked:
            return True
        return now_s - sequence.fits_since_s >= self._rest_s(sequence)

    def _rest_s(self, sequence: Sequence) -> float:
        """Alone none at first, and longer and longer where it was tried with as much room."""
        is_alone = not self._scheduler.running
        if is_alone and sequence.num_parkings == 1:
            return 0.0
        if not is_alone or self._store.room_bytes() > sequence.too_little_bytes:
            return _REST_S
        return min(_REST_S * 2.0**sequence.num_in_vain, _MAX_REST_S)

    def _fits(self, sequence: Sequence, mode: CacheMode) -> bool:
        """Whether a sequence fits beside those that run, with what these still need and a slab.

        Alone it may start if it would fit in any mode that is a way down: making room is then a
        matter of going there.
        """
        own = self._own_mode(sequence, mode)
        if self._scheduler.running:
            spare_bytes = self._store.slab_bytes + self._gauge.promised_bytes()
            spare_bytes += self._growth_bytes(sequence, own)
            return self._fits_beside(own, sequence, spare_bytes)
        return any(self._fits_alone(m, sequence) for m in self._ways_down(own, sequence))

    def _growth_bytes(self, sequence: Sequence, own: CacheMode) -> int:
        """What must be free besides for one that was parked, so that it soon is not again."""
        if not sequence.num_parkings:
            return 0
        num_tokens = min(_SPARE_TOKENS * 2 ** (sequence.num_parkings - 1), _MAX_SPARE_TOKENS)
        growth_bytes = self._gauge.growth_bytes(own, sequence, num_tokens)
        for other in self._scheduler.running:
            growth_bytes += self._gauge.growth_bytes(other.mode, other, num_tokens)
        return growth_bytes

    def _ways_down(self, own: CacheMode, sequence: Sequence) -> Iterator[CacheMode]:
        """The mode that a sequence starts in, and where it may go when memory runs out."""
        yield own
        lowest_bytes = self._gauge.alone_bytes(own, sequence)
        for mode in self._controller.ladder:
            mode_bytes = self._gauge.alone_bytes(mode, sequence)
            if sequence.permits(mode) and mode_bytes < lowest_bytes:
                lowest_bytes = mode_bytes
                yield mode

    def _fits_beside(self, mode: CacheMode, sequence: Sequence, spare_bytes: int) -> bool:
        """Whether pages and a step's workspace of a sequence fit in a mode, `spare_bytes` apart."""
        if not mode.is_disabled:
            chunk_bytes = self._gauge.chunk_bytes(MIN_STEP_TOKENS)
            spare_bytes += self._gauge.new_bytes(mode, sequence) + chunk_bytes
        return self._store.has_room(spare_bytes, self._step_bytes(mode, sequence))

    def _fits_alone(self, mode: CacheMode, sequence: Sequence) -> bool:
        """Whether they fit where nothing runs, to the page: whoever could go on must not wait."""
        step_bytes = self._step_bytes(mode, sequence)
        if mode.is_disabled:
            return self._store.has_room(0, step_bytes)
        unpacked_bytes = self._gauge.chunk_bytes(len(sequence.tokens))
        chunk_bytes = self._gauge.chunk_bytes(MIN_STEP_TOKENS)
        pages_bytes = min(self._gauge.new_bytes(mode, sequence) + chunk_bytes, unpacked_bytes)
        wasted_bytes = self._gauge.wasted_bytes(step_bytes)
        return self._store.has_room(pages_bytes + wasted_bytes, step_bytes)

    def _step_bytes(self, mode: CacheMode, sequence: Sequence) -> int:
        """The least workspace that it can go on with."""
        num_whole = len(sequence.tokens) if mode.is_disabled else 0
        return self._gauge.step_bytes(max(MIN_STEP_TOKENS, num_whole), sequence)

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
