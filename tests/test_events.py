import threading

from hypothesis import given
from hypothesis import strategies as st

from adaptive_kv.events import Drain, Event, EventLog, Healed, ModeChanged, SensorRecovered
from adaptive_kv.policy import CacheMode


def drain(running: int) -> Drain:
    return Drain(running=running)


def running(event: Event) -> int:
    assert isinstance(event, Drain)
    return event.running


def test_the_oldest_goes_first_and_readers_learn_how_many_they_missed() -> None:
    log = EventLog(capacity=2, clock=lambda: 7.0)
    for number in range(5):
        log.append(drain(number))
    kept, num_missed = log.since(0)
    assert [record.seq for record in kept] == [4, 5]
    assert [record.time_s for record in kept] == [7.0, 7.0]
    assert num_missed == 3
    assert log.since(4) == (kept[1:], 0)
    assert log.since(5) == ([], 0)


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=40))
def test_a_follower_sees_every_event_once_or_counts_it_as_missed(
    capacity: int, reads: list[bool]
) -> None:
    log, seen, num_missed, at = EventLog(capacity), list[int](), 0, 0
    for number, is_read in enumerate([*reads, True]):
        log.append(drain(number))
        if is_read:
            kept, missed = log.since(at)
            seen += [running(record.event) for record in kept]
            num_missed += missed
            at = log.last_seq
    assert seen == sorted(set(seen))
    assert len(seen) + num_missed == len(reads) + 1


def test_listeners_are_woken_until_they_stop() -> None:
    log, woken = EventLog(), list[int]()
    stop = log.listen(lambda: woken.append(log.last_seq))
    log.append(drain(0))
    stop()
    log.append(drain(1))
    assert woken == [1]


def test_a_listener_may_stop_itself_while_it_is_woken() -> None:
    log, woken = EventLog(), list[str]()

    def once() -> None:
        woken.append("once")
        stop()

    stop = log.listen(once)
    log.listen(lambda: woken.append("always"))
    log.append(drain(0))
    log.append(drain(1))
    assert woken == ["once", "always", "always"]


def test_threads_append_without_gaps() -> None:
    log = EventLog(capacity=1000)

    def append() -> None:
        for number in range(100):
            log.append(drain(number))

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept, num_missed = log.since(0)
    assert [record.seq for record in kept] == list(range(1, 401))
    assert num_missed == 0


def test_events_carry_the_words_that_outsiders_see() -> None:
    changed = ModeChanged(
        from_mode=CacheMode("full"), to_mode=CacheMode("int8"), reason="pressure",
        duration_s=0.1, freed_bytes=1, sequences=2,
    )  # fmt: skip
    assert changed.type == "mode_changed"
    assert Healed(sequence="a", num_tokens=1, duration_s=0.1).type == "healed"
    assert SensorRecovered(source="nvml").type == "sensor_recovered"
