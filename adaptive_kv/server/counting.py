"""Counts of what happened, for `/metrics`: every event, however seldom somebody asks."""

import re
from collections import Counter
from dataclasses import dataclass

from adaptive_kv.engine.tally import Durations
from adaptive_kv.events import (
    Event,
    EventLog,
    ModeChanged,
    Oom,
    OomAverted,
    SensorFault,
    SequenceSwitched,
    Switched,
)

SWITCH_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
OTHER = "other"
_MAX_REASONS = 24
_MAX_CHARS = 80
_NUMBER = re.compile(r"\b[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Way:
    """From which mode to which, and why; the values of labels."""

    from_mode: str
    to_mode: str
    reason: str


class EventCounts:
    """Follows the log of events; one thread.

    A policy may give any reason for a switch. Numbers in it are written `#`; the first two dozen
    reasons are told apart and the others are `other`, so that there are never many time series.
    """

    def __init__(self, events: EventLog) -> None:
        self.switches: Counter[Way] = Counter()
        """Of sequences."""
        self.mode_changes: Counter[Way] = Counter()
        """Of the service."""
        self.switch = Durations(SWITCH_BOUNDS_S)
        self.ooms: Counter[str] = Counter({"averted": 0, "refused": 0})
        self.sensor_faults = 0
        self.num_missed = 0
        """Events that the log had dropped before they were counted."""
        self.seq = 0
        """Of the newest event that was counted."""
        self._events = events
        self._reasons: set[str] = set()

    def catch_up(self) -> None:
        """Count what has happened since the last time."""
        records, num_missed = self._events.since(self.seq)
        self.num_missed += num_missed
        for record in records:
            self._count(record.event)
            self.seq = record.seq

    def _count(self, event: Event) -> None:
        match event:
            case SequenceSwitched():
                self.switches[self._way(event)] += 1
                self.switch.add(event.duration_s)
            case ModeChanged():
                self.mode_changes[self._way(event)] += 1
            case OomAverted():
                self.ooms["averted"] += 1
            case Oom():
                self.ooms["refused"] += 1
            case SensorFault():
                self.sensor_faults += 1

    def _way(self, event: Switched) -> Way:
        return Way(event.from_mode, event.to_mode, self._known(event.reason))

    def _known(self, reason: str) -> str:
        reason = _NUMBER.sub("#", reason)[:_MAX_CHARS]
        if len(self._reasons) < _MAX_REASONS:
            self._reasons.add(reason)
        return reason if reason in self._reasons else OTHER
