"""What is to be published and when, without a broker and without a clock."""

from collections import defaultdict

from adaptive_kv.engine.status import Status
from adaptive_kv.events import (
    Drain,
    Event,
    EventLog,
    ModeChanged,
    Recorded,
    SequenceSwitched,
)

_MIN_INTERVAL_S = 1.05
"""A little over the promised second, so that it holds where the state arrives, too."""
_NOTABLE_MEMORY_SHARE = 0.05
_EVENTS_PER_S, _EVENT_BURST = 1.0, 20
_NEVER_SUPPRESSED: tuple[type[Event], ...] = (ModeChanged, SequenceSwitched, Drain)
"""The guard bounds how often these happen; the others, clients and broken parts cause at will."""


class Bucket:
    """Lets `burst` things through at once, and `per_s` of them in the long run.

    Times are seconds of the caller's clock; one that jumps does no harm.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._tokens = float(burst)
        self._last_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Whether one more may pass at `now_s`."""
        passed_s = 0.0 if self._last_s is None else max(0.0, now_s - self._last_s)
        self._last_s = now_s
        self._tokens = min(self._burst, self._tokens + passed_s * self._per_s)
        may_pass = self._tokens >= 1
        self._tokens -= may_pass
        return may_pass


class Retained:
    """The latest text for each retained topic, and what of it the broker has yet to be told.

    Any thread puts, one tells.
    """

    def __init__(self) -> None:
        self._latest: dict[str, str] = {}
        self._told: dict[str, str] = {}

    def put(self, topic: str, text: str) -> None:
        """What the broker shall keep from now on."""
        self._latest[topic] = text

    def untold(self) -> list[tuple[str, str]]:
        """Topics with texts that the broker does not know."""
        return [pair for pair in self._latest.items() if self._told.get(pair[0]) is not pair[1]]

    def told(self, topic: str, text: str) -> None:
        """The broker has confirmed it. What is taken back by an empty text need not be repeated."""
        self._told[topic] = text
        if not text:
            self._latest.pop(topic)

    def forget(self) -> None:
        """The broker may have lost what it was told."""
        self._told.clear()


class StatePace:
    """Whether the state is to be published: on change and on heartbeat, at most once a second.

    Times are monotonic seconds of the caller's clock.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._last: Status | None = None
        self._last_s = float("-inf")

    def is_due(self, now: Status, now_s: float) -> bool:
        """Whether `now` should be published at `now_s`."""
        age_s = now_s - self._last_s
        if age_s < _MIN_INTERVAL_S:
            return False
        return self._last is None or age_s >= self._heartbeat_s or is_news(self._last, now)

    def rest_s(self, now_s: float) -> float:
        """How long the pace still keeps any state back."""
        return max(0.0, self._last_s + _MIN_INTERVAL_S - now_s)

    def published(self, status: Status, now_s: float) -> None:
        """Remember what subscribers have been told, or will have been."""
        self._last, self._last_s = status, now_s

    def forget(self) -> None:
        """The broker may have lost what it was told: publish again as soon as the pace permits."""
        self._last = None


def is_news(then: Status, now: Status) -> bool:
    """Whether `now` tells a subscriber more than that time has passed and tokens were made."""
    moved_bytes = abs(now.memory.free_bytes - then.memory.free_bytes)
    has_moved = moved_bytes >= _NOTABLE_MEMORY_SHARE * max(1, now.memory.total_bytes)
    return has_moved or _gist(then) != _gist(now)


def _gist(status: Status) -> tuple[object, ...]:
    counts = {mode: count for mode, count in status.num_sequences_by_mode.items() if count}
    return (
        status.health,
        status.mode,
        status.pinned,
        status.reason_code,
        status.reason_text,
        status.policy,
        status.memory.source,
        status.load.running,
        status.load.waiting,
        counts,
    )


class EventCursor:
    """Follows the event log: every event is told once, in order, or counted.

    A type that happens too often is suppressed for a while; those that switch a mode never are.
    """

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._seq = self._judged_seq = 0
        self._buckets: dict[str, Bucket] = defaultdict(lambda: Bucket(_EVENTS_PER_S, _EVENT_BURST))
        self.num_dropped = 0
        """Those that the log let go, or the broker denied."""
        self.num_suppressed = 0
        self.num_suppressed_before = 0
        """Those since the last one that was told."""

    def pending(self) -> list[Recorded]:
        """Events that are not dealt with yet, oldest first; counts those that the log let go."""
        if self._events.last_seq == self._seq:
            return []
        kept, num_missed = self._events.since(self._seq)
        self.num_dropped += num_missed
        self._seq += num_missed
        return kept

    def admits(self, recorded: Recorded) -> bool:
        """Whether the oldest pending event is to be told; if not, it is counted and dealt with."""
        if recorded.seq <= self._judged_seq:
            return True  # the connection was lost while it was told
        self._judged_seq = recorded.seq
        if self._has_room_for(recorded):
            return True
        self._seq = recorded.seq
        self.num_suppressed += 1
        self.num_suppressed_before += 1
        return False

    def delivered(self, recorded: Recorded) -> None:
        """The broker has confirmed `recorded`."""
        self._seq = recorded.seq
        self.num_suppressed_before = 0

    def denied(self, recorded: Recorded) -> None:
        """The broker does not want `recorded` from us."""
        self._seq = recorded.seq
        self.num_dropped += 1

    def _has_room_for(self, recorded: Recorded) -> bool:
        """By when it happened: an outage makes no flood of what came at leisure."""
        if isinstance(recorded.event, _NEVER_SUPPRESSED):
            return True
        return self._buckets[recorded.event.type].take(recorded.time_s)
