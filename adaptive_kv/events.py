"""What happened: frozen event types and the bounded, drop-oldest log that every publisher reads."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from adaptive_kv.policy import CacheMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events; `type` is the word that outsiders see."""

    type: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched(Event):
    """Pages were brought from one plan to another."""

    from_mode: CacheMode
    to_mode: CacheMode
    reason: str
    duration_s: float
    freed_bytes: int
    """Page bytes before less page bytes after; negative when the cache grew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChanged(Switched):
    """The mode of the service changed and every running sequence that may follow has followed."""

    type = "mode_changed"
    sequences: int
    """How many sequences switched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSwitched(Switched):
    """One sequence arrived in another mode."""

    type = "sequence_switched"
    sequence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OomAverted(Event):
    """A step ran out of memory and was saved: the cache went down or gave way."""

    type = "oom_averted"
    to_mode: CacheMode
    needed_bytes: int
    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Oom(Event):
    """A sequence waited in vain for memory and was refused."""

    type = "oom"
    sequence: str
    needed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFault(Event):
    """A policy raised, was silent past its deadline or answered nonsense."""

    type = "policy_fault"
    policy: str
    error: str
    faults: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorFault(Event):
    """A memory source stopped answering or contradicts itself."""

    type = "sensor_fault"
    source: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorRecovered(Event):
    """A memory source answers again."""

    type = "sensor_recovered"
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRejected(Event):
    """A request was refused or failed; carries its code, never its text."""

    type = "request_rejected"
    request: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceParked(Event):
    """A sequence that did not fit keeps only its token ids and waits."""

    type = "sequence_parked"
    sequence: str
    num_tokens: int
    freed_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceResumed(Event):
    """A parked sequence runs again, by re-prefill."""

    type = "sequence_resumed"
    sequence: str
    num_tokens: int
    parked_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Healed(Event):
    """Inexact pages of a sequence were recomputed from its token ids."""

    type = "healed"
    sequence: str
    num_tokens: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain(Event):
    """The service takes no more requests and finishes those it has."""

    type = "drain"
    running: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event with its place in the log: `seq` counts from 1 without gaps within a boot."""

    seq: int
    time_s: float
    """Wall clock, seconds since the epoch; for people, never for order."""
    event: Event


class EventLog:
    """Bounded and drop-oldest: any thread appends, any number of readers follow by `seq`.

    Appending never blocks on a reader. A reader that falls behind learns how many it missed.
    """

    def __init__(self, capacity: int = 1024, clock: Callable[[], float] = time.time) -> None:
        self._records: deque[Recorded] = deque(maxlen=capacity)
        self._clock = clock
        self._lock = threading.Lock()
        self._last_seq = 0
        self._listeners: list[Callable[[], None]] = []

    @property
    def last_seq(self) -> int:
        """The newest event's `seq`; 0 before the first."""
        return self._last_seq

    def append(self, event: Event) -> Recorded:
        """Keep `event`, drop the oldest if full, and tell the listeners."""
        with self._lock:
            self._last_seq += 1
            record = Recorded(self._last_seq, self._clock(), event)
            self._records.append(record)
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()
        return record

    def since(self, seq: int) -> tuple[list[Recorded], int]:
        """The kept events after `seq`, oldest first, and how many after `seq` were dropped."""
        with self._lock:
            kept = [record for record in self._records if record.seq > seq]
            first = kept[0].seq if kept else self._last_seq + 1
        return kept, max(0, first - seq - 1)

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` after every append, in the appending thread; it must not block.

        Returns a function that ends it.
        """
        with self._lock:
            self._listeners.append(wake)

        def stop() -> None:
            with self._lock:
                self._listeners.remove(wake)

        return stop
