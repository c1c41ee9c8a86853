"""What was measured during a run, and the figures that sum it up.

Times are seconds since the run began.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SWITCH_TYPE = "sequence_switched"
_OFF_BYTES = 192 * 2**20
_OFF_SHARE = 0.3
_QUANTIZED = ("int8", "int4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at the service's /status and at the squeeze."""

    time_s: float
    free_bytes: int
    floor_bytes: int
    cache_bytes: int
    held_bytes: int
    """By the squeeze."""
    leave_bytes: int
    """What the squeeze was told to leave above the floor, cache included."""
    mode: str
    """Of the service."""
    modes: Mapping[str, str]
    """Of every sequence by its id; `waiting` and `parked` stand for those that have no pages."""
    tokens_per_s: float

    @property
    def room_bytes(self) -> int:
        """What is left to the service above the floor: its cache, and what is free."""
        return self.cache_bytes + max(0, self.free_bytes - self.floor_bytes)


@dataclass(frozen=True, slots=True)
class Gap:
    """The wait for one token, as a client saw it."""

    time_s: float
    gap_s: float


@dataclass(frozen=True, slots=True)
class Happening:
    """An event document of the service, and when it happened."""

    time_s: float
    document: Mapping[str, Any]

    @property
    def type(self) -> str:
        """Its `type`."""
        return str(self.document["type"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How one request went; `error` is None where it was completed."""

    start_s: float
    end_s: float
    num_tokens: int = 0
    tokens_by_mode: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run, from `time_s` on."""

    time_s: float
    name: str


@dataclass(slots=True)
class Timeline:
    """Everything measured; threads append to its lists."""

    device: str = ""
    memory_source: str = ""
    samples: list[Sample] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    num_mqtt_states: int = 0
    num_mqtt_events: int = 0
    has_broker: bool = False

    @property
    def end_s(self) -> float:
        """When the last thing was seen."""
        times = [sample.time_s for sample in self.samples[-1:]]
        return max([*times, *(answer.end_s for answer in self.answers)], default=0.0)

    @property
    def most_running(self) -> int:
        """How many sequences ran at once, at most."""
        idle = {"waiting", "parked"}
        return max((sum(m not in idle for m in s.modes.values()) for s in self.samples), default=0)

    @property
    def is_restless(self) -> bool:
        """Whether others took and gave so much that the squeeze could often not even it out."""
        off = sum(abs(s.room_bytes - s.leave_bytes) > _OFF_BYTES for s in self.samples)
        return off > len(self.samples) * _OFF_SHARE

    def count(self, type_: str) -> int:
        """How many events of a type there were."""
        return sum(happening.type == type_ for happening in self.happenings)


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run: all measured, from answers, events and /status."""

    requests: int
    completed: int
    failed: int
    switches: int
    """Of sequences."""
    modes_seen: list[str]
    """In which tokens were generated, by the answers' own account."""
    oom: int
    peak_cache_bytes: int
    tokens_per_s: float

    @property
    def faults(self) -> list[str]:
        """What a run should not show, or should have shown."""
        is_quantized = any(mode in _QUANTIZED for mode in self.modes_seen)
        is_window = any(mode.startswith("window:") for mode in self.modes_seen)
        faults = {
            "requests failed": self.failed == 0 and self.completed == self.requests,
            "memory ran out": self.oom == 0,
            "nothing was generated in full": "full" in self.modes_seen,
            "nothing was generated in a quantized mode": is_quantized,
            "nothing was generated in a window": is_window,
        }
        return [fault for fault, is_well in faults.items() if not is_well]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def summarize(timeline: Timeline, ladder: Iterable[str]) -> Summary:
    """The figures of a run; `ladder` orders the modes."""
    done = [answer for answer in timeline.answers if answer.error is None]
    rungs = list(ladder)
    seen = {mode for answer in done for mode in answer.tokens_by_mode}
    span_s = max((a.end_s for a in done), default=0.0) - min((a.start_s for a in done), default=0.0)
    num_tokens = sum(answer.num_tokens for answer in done)
    return Summary(
        requests=len(timeline.answers),
        completed=len(done),
        failed=len(timeline.answers) - len(done),
        switches=timeline.count(SWITCH_TYPE),
        modes_seen=sorted(
            seen, key=lambda mode: (rungs.index(mode) if mode in rungs else 99, mode)
        ),
        oom=timeline.count("oom"),
        peak_cache_bytes=max((sample.cache_bytes for sample in timeline.samples), default=0),
        tokens_per_s=round(num_tokens / span_s, 1) if span_s > 0 else 0.0,
    )
