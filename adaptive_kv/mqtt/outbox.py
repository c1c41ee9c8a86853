"""What is to be published and when, without a broker and without a clock."""

from adaptive_kv.engine.status import Status
from adaptive_kv.events import EventLog, Recorded

_MIN_INTERVAL_S = 1.05
"""A little over the promised second, so that it holds where the state arrives, too."""
_NOTABLE_MEMORY_SHARE = 0.05


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
    """Follows the event log: every event once, in order, or counted as dropped."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._seq = 0
        self.num_dropped = 0

    def pending(self) -> list[Recorded]:
        """Events that are not delivered yet, oldest first; counts those that the log let go."""
        kept, num_missed = self._events.since(self._seq)
        self.num_dropped += num_missed
        self._seq += num_missed
        return kept

    def delivered(self, recorded: Recorded) -> None:
        """The broker has confirmed `recorded`."""
        self._seq = recorded.seq
