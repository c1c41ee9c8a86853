"""What is looked at many times a second: events, the floor, the last minutes."""

import json
from typing import Any

import pytest
from server.scripted import make_status, sequence_status
from statuses import EVERY_EVENT, FULL, INT4, WINDOW

from adaptive_kv.engine.status import Status
from adaptive_kv.events import Drain, EventLog, ModeChanged, SequenceSwitched
from adaptive_kv.policy import Memory
from adaptive_kv.server.counting import OTHER, EventCounts, Way
from adaptive_kv.server.watch import Watch

FLOOR_BYTES = 100


def switched(reason: str) -> SequenceSwitched:
    return SequenceSwitched(
        from_mode=FULL,
        to_mode=INT4,
        reason=reason,
        duration_s=0.02,
        freed_bytes=1,
        sequence="a",
    )


class World:
    """A status and a clock that a test sets."""

    def __init__(self, events: EventLog | None = None) -> None:
        self.now_s = 50.0
        self.status = self.with_free(FLOOR_BYTES)
        self.events = events or EventLog()
        self.watch = Watch(lambda: self.status, self.events, lambda: self.now_s)

    def with_free(self, free_bytes: int, **changes: Any) -> Status:
        memory = Memory(
            total_bytes=1000,
            free_bytes=free_bytes,
            floor_bytes=FLOOR_BYTES,
            weights_bytes=10,
            cache_bytes=20,
            source="file",
            sample_age_s=0.0,
        )
        return make_status(memory=memory, **changes)

    def pass_s(self, duration_s: float, free_bytes: int) -> None:
        """`free_bytes` are free for so long."""
        self.status = self.with_free(free_bytes)
        self.watch.look()
        self.now_s += duration_s
        self.watch.look()


def test_every_event_is_counted_once() -> None:
    world = World()
    for event in EVERY_EVENT:
        world.events.append(event)
        world.watch.look()
    world.watch.look()
    counts = world.watch.counts
    assert counts.switches == {Way(INT4, WINDOW, "pressure"): 1}
    assert counts.mode_changes == {Way(FULL, INT4, "pressure"): 1}
    assert counts.switch.spread().sum_s == pytest.approx(0.01)
    assert counts.ooms == {"averted": 1, "refused": 1}
    assert counts.sensor_faults == 1
    assert counts.num_missed == 0


def test_events_that_came_too_fast_are_known_to_be_missing() -> None:
    world = World(EventLog(capacity=4))
    for _ in range(10):
        world.events.append(switched("x"))
    world.watch.look()
    world.events.append(Drain(running=0))
    world.watch.look()
    assert sum(world.watch.counts.switches.values()) == 4
    assert world.watch.counts.num_missed == 6


def test_no_policy_makes_any_number_of_series() -> None:
    events = EventLog()
    counts = EventCounts(events)
    for number in range(100):
        events.append(switched(f"{number / 7:.3f} of {number} MiB is too much for int4"))
    events.append(switched("x" * 5000))
    for number in range(100):
        events.append(switched(f"because of {chr(1000 + number)}"))
    counts.catch_up()
    reasons = {way.reason for way in counts.switches}
    assert len(counts.switches) == len(reasons) == 25
    assert max(map(len, reasons)) == 80
    assert counts.switches[Way(FULL, INT4, "# of # MiB is too much for int4")] == 100
    assert counts.switches[Way(FULL, INT4, OTHER)] == 78
    assert sum(counts.switches.values()) == 201


def test_changes_of_the_service_are_no_switches_of_sequences() -> None:
    events = EventLog()
    counts = EventCounts(events)
    changed = ModeChanged(
        from_mode=FULL, to_mode=INT4, reason="r", duration_s=1.0, freed_bytes=0, sequences=3
    )
    events.append(changed)
    counts.catch_up()
    assert not counts.switches
    assert sum(counts.switch.spread().counts) == 0


def test_time_under_the_floor_adds_up() -> None:
    world = World()
    world.pass_s(10.0, FLOOR_BYTES)
    assert world.watch.under_floor_s == 0
    world.pass_s(2.0, FLOOR_BYTES - 1)
    world.pass_s(0.5, 0)
    world.pass_s(7.0, FLOOR_BYTES)
    world.pass_s(1.0, FLOOR_BYTES - 1)
    assert world.watch.under_floor_s == pytest.approx(3.5)


def history(world: World) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(world.watch.history.to_json(model="m", budget_bytes=None))
    return parsed


def test_the_last_ten_minutes_are_kept_and_no_more() -> None:
    world = World()
    for _ in range(20 * 60):
        world.pass_s(1.0, FLOOR_BYTES + 5)
    kept = history(world)["samples"]
    assert len(kept) == 300
    world.pass_s(0.5, FLOOR_BYTES)
    world.pass_s(0.5, FLOOR_BYTES)
    assert len(history(world)["samples"]) == 300


def test_history_tells_what_charts_show() -> None:
    """Waiting sequences hold no place; parked ones have no mode."""
    world = World()
    assert history(world) == {"model": "m", "budget_bytes": None, "samples": []}
    sequences = tuple(sequence_status(state) for state in ("running", "waiting"))
    world.status = world.with_free(300, sequences=sequences)
    world.watch.look()
    (sample,) = history(world)["samples"]
    assert sample.pop("time_s") > 1_700_000_000
    assert sample == {
        "mode": "full",
        "free_bytes": 300,
        "floor_bytes": FLOOR_BYTES,
        "cache_bytes": 20,
        "token_p50_s": None,
        "token_p95_s": None,
        "modes": {"a": "full"},
    }
    world.status = world.with_free(300, sequences=(sequence_status("parked"),))
    world.now_s += 2
    world.watch.look()
    assert history(world)["samples"][1]["modes"] == {"a": "parked"}
