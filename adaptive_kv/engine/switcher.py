"""Carries out what the controller ordered, a bounded amount per step, and reports what it took."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from adaptive_kv.cache import switch
from adaptive_kv.cache.store import PageStore
from adaptive_kv.engine.sequence import Sequence
from adaptive_kv.events import Event, ModeChanged, SequenceSwitched
from adaptive_kv.policy import CacheMode


@dataclass(slots=True)
class _Switch:
    """A switch under way, of one sequence or of the service."""

    from_mode: CacheMode
    reason: str
    started_s: float
    freed_bytes: int = 0
    num_sequences: int = 0


class Switcher:
    """Turns modes into pages. `clock` gives monotonic seconds.

    Where a device converts them, a clock sees how long it takes to tell it so, and no more: then
    `bytes_per_s`, measured at load, says how much fits into a step's share of time.
    """

    def __init__(
        self,
        store: PageStore,
        mode: CacheMode,
        max_bytes: int,
        emit: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
        bytes_per_s: float | None = None,
    ) -> None:
        self.mode = mode
        """The mode of the service, as last ordered."""
        self._store = store
        self._max_bytes = max_bytes
        self._emit = emit
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._of_service: _Switch | None = None
        self._under_way: dict[Sequence, _Switch] = {}

    def order(
        self,
        mode: CacheMode,
        changing: Mapping[Sequence, CacheMode],
        reason: str,
    ) -> None:
        """Set the mode of the service, and of sequences that change; pages follow in `advance`.

        A switch under way that is overtaken by another one is told as far as it came.
        """
        for sequence in changing:
            if sequence in self._under_way:
                self._report(sequence)
        if mode != self.mode:
            self._report_service()
            self._of_service = _Switch(self.mode, reason, self._clock())
            self.mode = mode
        for sequence, wanted in changing.items():
            self._start(sequence, wanted, reason)

    @property
    def is_busy(self) -> bool:
        """Whether pages of some sequence are being converted."""
        return bool(self._under_way)

    def advance(self, sequences: Iterable[Sequence], *, max_s: float | None) -> int:
        """Convert pages for about `max_s`, or all of them at once (None); returns bytes freed.

        Raises `torch.OutOfMemoryError` where a larger format does not fit; what was done stays.
        """
        left = self._max_bytes_in(max_s)
        late_s = math.inf if max_s is None else self._clock() + max_s
        freed_bytes = 0

        def is_late() -> bool:
            return self._clock() >= late_s

        for sequence in sequences:
            if left <= 0 or (freed_bytes and is_late()):
                break
            if sequence.cache.is_settled and sequence not in self._under_way:
                continue
            progress = switch.advance(sequence.cache, left, is_late=is_late)
            freed_bytes += progress.freed_bytes
            left -= progress.moved_bytes
            if under_way := self._under_way.get(sequence):
                under_way.freed_bytes += progress.freed_bytes
                if sequence.cache.is_settled:
                    self._report(sequence)
        while left > 0 and not is_late() and (moved_bytes := self._store.compact(1)):
            left -= moved_bytes
        if not self._under_way:
            self._report_service()
        return freed_bytes

    def _max_bytes_in(self, max_s: float | None) -> int:
        """How much may be converted at once; never nothing, so that a switch ends some time."""
        if max_s is None:
            return sys.maxsize
        if self._bytes_per_s is None:
            return self._max_bytes
        return max(1, int(min(self._max_bytes, max_s * self._bytes_per_s)))

    def forget(self, sequence: Sequence) -> None:
        """A sequence ended or was parked; its switch ends with it."""
        self._under_way.pop(sequence, None)

    def _start(self, sequence: Sequence, mode: CacheMode, reason: str) -> None:
        sequence.drop_shadow()
        under_way = _Switch(sequence.mode, reason, self._clock())
        used_bytes = self._store.used_bytes
        sequence.cache.mode = mode
        sequence.num_switches += 1
        under_way.freed_bytes += used_bytes - self._store.used_bytes
        self._under_way[sequence] = under_way

    def _report(self, sequence: Sequence) -> None:
        done = self._under_way.pop(sequence)
        self._emit(
            SequenceSwitched(
                from_mode=done.from_mode,
                to_mode=sequence.mode,
                reason=done.reason,
                duration_s=self._clock() - done.started_s,
                freed_bytes=done.freed_bytes,
                sequence=sequence.id,
            )
        )
        if self._of_service is not None:
            self._of_service.freed_bytes += done.freed_bytes
            self._of_service.num_sequences += 1

    def _report_service(self) -> None:
        done, self._of_service = self._of_service, None
        if done is None:
            return
        self._emit(
            ModeChanged(
                from_mode=done.from_mode,
                to_mode=self.mode,
                reason=done.reason,
                duration_s=self._clock() - done.started_s,
                freed_bytes=done.freed_bytes,
                sequences=done.num_sequences,
            )
        )
