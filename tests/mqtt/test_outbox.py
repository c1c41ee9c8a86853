from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statuses import EVERY_EVENT, FULL, INT4, WINDOW, make_status

from adaptive_kv.engine.status import Health, PolicyStatus
from adaptive_kv.events import Drain, EventLog, ModeChanged, SequenceSwitched
from adaptive_kv.mqtt.outbox import Bucket, EventCursor, Retained, StatePace, is_news
from adaptive_kv.policy import Latency, Load

STATUS = make_status()


def with_memory(**changes: Any) -> Any:
    return replace(STATUS, memory=replace(STATUS.memory, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": INT4},
        {"health": Health.DEGRADED},
        {"pinned": True},
        {"reason_code": "floor"},
        {"reason_text": "free 3 < 4"},
        {"policy": PolicyStatus(name="ladder", status="faulty", faults=1)},
        {"load": Load(running=3, waiting=1, tokens_per_s=100.0)},
        {"num_sequences_by_mode": {FULL: 2}},
    ],
    ids=str,
)
def test_what_matters_is_news(changes: dict[str, Any]) -> None:
    assert is_news(STATUS, replace(STATUS, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 8, "time_s": STATUS.time_s + 1, "mode_age_s": 2.5},
        {"latency": Latency(token_s=0.5, p50_s=0.5, p95_s=0.5)},
        {"load": Load(running=2, waiting=1, tokens_per_s=50.0)},
        {"sequences": ()},
        {"num_sequences_by_mode": {FULL: 1, INT4: 1, WINDOW: 0}},
    ],
    ids=str,
)
def test_time_and_tokens_are_no_news(changes: dict[str, Any]) -> None:
    assert not is_news(STATUS, replace(STATUS, **changes))


def test_only_a_notable_move_of_memory_is_news() -> None:
    assert not is_news(STATUS, with_memory(free_bytes=649))
    assert is_news(STATUS, with_memory(free_bytes=650))
    assert is_news(STATUS, with_memory(free_bytes=-50))
    assert is_news(STATUS, with_memory(source="cuda"))


def test_the_first_state_is_due_at_once_and_a_heartbeat_after_silence() -> None:
    pace = StatePace(heartbeat_s=30.0)
    assert pace.is_due(STATUS, 0.0)
    pace.published(STATUS, 0.0)
    assert not pace.is_due(STATUS, 29.9)
    assert pace.is_due(STATUS, 30.0)


def test_a_broker_that_returns_is_told_again_but_not_faster() -> None:
    pace = StatePace(heartbeat_s=30.0)
    pace.published(STATUS, 0.0)
    pace.forget()
    assert not pace.is_due(STATUS, 0.5)
    assert pace.is_due(STATUS, 1.5)


@given(st.lists(st.tuples(st.floats(0.01, 0.6), st.booleans()), max_size=60))
def test_at_most_one_state_a_second_and_the_last_change_is_told(
    steps: list[tuple[float, bool]],
) -> None:
    pace, told, now_s, status = StatePace(heartbeat_s=1e9), list[tuple[float, bool]](), 0.0, STATUS
    for wait_s, pinned in [*steps, (2.0, status.pinned)]:
        now_s += wait_s
        status = replace(status, pinned=pinned)
        if pace.is_due(status, now_s):
            pace.published(status, now_s)
            told.append((now_s, pinned))
    assert all(later - earlier >= 1.0 for (earlier, _), (later, _) in pairwise(told))
    assert told[-1][1] is status.pinned


@given(st.integers(1, 6), st.lists(st.sampled_from(["append", "deliver", "look"]), max_size=60))
def test_every_event_is_delivered_in_order_or_counted(capacity: int, acts: list[str]) -> None:
    log = EventLog(capacity)
    cursor, delivered = EventCursor(log), list[int]()
    for act in [*acts, "all"]:
        if act == "append":
            log.append(Drain(running=0))
            continue
        pending = cursor.pending()
        for recorded in pending if act == "all" else pending[: act == "deliver"]:
            cursor.delivered(recorded)
            delivered.append(recorded.seq)
    assert delivered == sorted(set(delivered))
    assert len(delivered) + cursor.num_dropped == log.last_seq


@given(st.lists(st.floats(-5.0, 5.0), max_size=100), st.integers(1, 30))
def test_a_bucket_lets_no_more_through_than_it_says(steps: list[float], burst: int) -> None:
    """Even where the clock goes back: that time does not count."""
    bucket, now_s, passed_s, num_taken = Bucket(2.0, burst), 0.0, 0.0, 0
    for step_s in steps:
        now_s += step_s
        passed_s += max(0.0, step_s)
        num_taken += bucket.take(now_s)
        assert num_taken <= burst + 2.0 * passed_s


def test_a_bucket_that_was_emptied_fills_again() -> None:
    bucket = Bucket(1.0, 3)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(2.1) for _ in range(3)] == [True, True, False]


@given(st.lists(st.sampled_from(EVERY_EVENT), max_size=200), st.integers(1, 64))
def test_every_event_is_told_or_counted_whatever_its_type(events: list[Any], capacity: int) -> None:
    now_s = 0.0
    log = EventLog(capacity, clock=lambda: now_s)
    cursor, told, num_before = EventCursor(log), list[Any](), 0
    for number, event in enumerate(events, 1):
        now_s += 0.01
        log.append(event)
        if number % 7 and number < len(events):
            continue
        for recorded in cursor.pending():
            if cursor.admits(recorded):
                assert cursor.admits(recorded), "again, after the connection was lost"
                told.append(recorded)
                num_before += cursor.num_suppressed_before
                cursor.delivered(recorded)
    assert [recorded.seq for recorded in told] == sorted({recorded.seq for recorded in told})
    assert len(told) + cursor.num_dropped + cursor.num_suppressed == log.last_seq
    assert num_before + cursor.num_suppressed_before == cursor.num_suppressed


def test_a_flood_of_one_type_hides_no_other_and_no_switch() -> None:
    now_s = 0.0
    log = EventLog(clock=lambda: now_s)
    cursor = EventCursor(log)
    for event in (event for event in EVERY_EVENT for _ in range(30)):
        log.append(event)
    told = [recorded.event for recorded in cursor.pending() if cursor.admits(recorded)]
    for event in EVERY_EVENT:
        never = isinstance(event, ModeChanged | SequenceSwitched | Drain)
        assert told.count(event) == (30 if never else 20)


def test_an_outage_makes_no_flood_of_what_came_at_leisure() -> None:
    now_s = 0.0
    log = EventLog(clock=lambda: now_s)
    cursor = EventCursor(log)
    for _ in range(60):
        now_s += 1.0
        log.append(EVERY_EVENT[7])
    assert sum(map(cursor.admits, cursor.pending())) == 60


def test_what_is_retained_is_told_once_until_it_changes_or_may_be_lost() -> None:
    retained = Retained()
    retained.put("info", "old")
    retained.put("info", "new")
    assert retained.untold() == [("info", "new")]
    retained.told("info", "new")
    assert retained.untold() == []
    retained.forget()
    assert retained.untold() == [("info", "new")]
    retained.put("info", "newer")
    retained.told("info", "new")
    assert retained.untold() == [("info", "newer")], "which was put while the other was told"


def test_what_was_taken_back_is_not_taken_back_again() -> None:
    retained = Retained()
    retained.put("discovery", "")
    retained.told("discovery", "")
    retained.forget()
    assert retained.untold() == []
