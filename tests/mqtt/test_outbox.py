from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statuses import FULL, INT4, WINDOW, make_status

from adaptive_kv.engine.status import Health, PolicyStatus
from adaptive_kv.events import Drain, EventLog
from adaptive_kv.mqtt.outbox import EventCursor, StatePace, is_news
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
