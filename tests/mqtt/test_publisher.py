import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker import Listener, Mosquitto, comes_true
from mqtt.publishing import HASTY, make_node, publishing
from schemas import validate, validate_all
from statuses import EVERY_EVENT, FULL, INT4

from adaptive_kv.engine.status import Health
from adaptive_kv.events import EventLog, RequestRejected

TESTS = Path(__file__).parents[1]
AVAILABLE = "adaptive-kv/v1/edge-07/availability"


def test_after_connecting_it_says_online_info_and_state(broker: Mosquitto) -> None:
    with Listener(broker) as listener, publishing(broker.url):
        assert listener.hears(lambda heard: bool(heard.of("state")))
        topics = [heard.topic.rpartition("/")[2] for heard in listener.heard]
        assert topics == ["availability", "info", "state"]
        assert listener.texts("availability") == ["online"]
        assert {heard.qos for heard in listener.heard} == {1}


def test_who_comes_later_still_learns_the_truth(broker: Mosquitto) -> None:
    with publishing(broker.url, base="site/lab") as node:
        node.append(1)
        assert node.has_told_all()
        with Listener(broker) as listener:
            assert listener.hears(lambda heard: len(heard.heard) >= 3)
            kept = {heard.topic for heard in listener.heard if heard.retain}
    names = ("availability", "info", "state")
    assert kept == {f"site/lab/v1/edge-07/{name}" for name in names}


def test_every_document_on_the_wire_is_valid(broker: Mosquitto) -> None:
    with Listener(broker) as listener, publishing(broker.url) as node:
        for event in EVERY_EVENT:
            node.events.append(event)
        node.change(mode=INT4, health=Health.DEGRADED, costs={})
        assert listener.hears(lambda heard: len(heard.of("event")) == len(EVERY_EVENT))
        assert listener.hears(lambda heard: heard.of("state")[-1].json["mode"] == "int4")
        for kind in ("info", "state", "event"):
            for heard in listener.of(kind):
                validate(kind, heard.json)


def test_events_arrive_once_in_order_without_gaps(broker: Mosquitto) -> None:
    with Listener(broker) as listener, publishing(broker.url, EventLog(1024)) as node:
        node.append(*range(300))
        assert listener.hears(lambda heard: len(heard.of("event")) >= 300)
        documents = [heard.json for heard in listener.of("event")]
    assert [document["seq"] for document in documents] == list(range(1, 301))
    assert [document["running"] for document in documents] == list(range(300))
    assert {document["boot_id"] for document in documents} == {"00c0ffee"}


def test_events_from_before_the_first_connection_are_told(broker: Mosquitto) -> None:
    log = EventLog()
    log.append(EVERY_EVENT[0])
    with Listener(broker) as listener, publishing(broker.url, log):
        assert listener.hears(lambda heard: len(heard.of("event")) == 1)
        assert listener.of("event")[0].json["type"] == "mode_changed"


def test_a_flood_is_cut_and_what_is_missing_is_counted(broker: Mosquitto) -> None:
    """In the next event and in the state; a switch of the mode is told in any case."""
    rejection = RequestRejected(request="r", code="overloaded")
    with Listener(broker) as listener, publishing(broker.url, EventLog(1024)) as node:
        for _ in range(300):
            node.events.append(rejection)
        node.events.append(EVERY_EVENT[0])
        assert listener.hears(lambda heard: "mode_changed" in types(heard))
        assert listener.hears(lambda heard: heard.of("state")[-1].json["suppressed_events"] > 0)
        events = [heard.json for heard in listener.of("event")]
        told = [event["seq"] for event in events]
        num_suppressed = sum(event.get("suppressed", 0) for event in events)
        assert len(told) + num_suppressed == node.events.last_seq == told[-1]
        assert 20 <= len(told) < 40
        state = listener.of("state")[-1].json
        assert (state["suppressed_events"], state["dropped_events"]) == (num_suppressed, 0)
        validate_all(listener.heard)


def types(listener: Listener) -> list[str]:
    return [heard.json["type"] for heard in listener.of("event")]


def test_a_flood_takes_up_no_more_room_than_the_log(tmp_path: Path) -> None:
    """Three hundred changes a second for a minute, at once and with nobody who takes them."""
    broker = Mosquitto(tmp_path)
    events = EventLog()
    try:
        with publishing(broker.url, events) as node:
            assert comes_true(lambda: node.publisher.status.last_error is not None)
            for number in range(18_000):
                node.change(step=number, mode=(FULL, INT4)[number % 2])
                node.events.append(EVERY_EVENT[number % 2])
            assert len(events._records) == 1024
            broker.start()
            with Listener(broker) as listener:
                assert listener.hears(lambda heard: heard.of("event")[-1:] != [])
                assert node.has_told_all()
                assert listener.hears(
                    lambda heard: heard.of("event")[-1].json["seq"] == events.last_seq
                )
                assert listener.hears(lambda heard: heard.of("state")[-1].json["dropped_events"])
                num_dropped = listener.of("state")[-1].json["dropped_events"]
                assert len(listener.of("event")) + num_dropped == events.last_seq
                assert not node.publisher._teller._cursor.pending()
    finally:
        broker.stop()


def test_a_state_that_changes_all_the_time_is_told_once_a_second_and_ends_true(
    broker: Mosquitto,
) -> None:
    with Listener(broker) as listener, publishing(broker.url) as node:
        began_s = time.monotonic()
        number = 0
        while time.monotonic() < began_s + 3.5:
            number += 1
            node.change(reason_text=str(number), mode=FULL if number % 2 else INT4)
            time.sleep(0.005)
        assert listener.hears(
            lambda heard: heard.of("state")[-1].json["reason"]["text"] == str(number)
        )
        states = listener.of("state")
        times = [state.json["time"] for state in states]
        passed_s = states[-1].time_s - began_s
    assert 2 < len(states) <= passed_s + 1
    assert times == sorted(times)
    seqs = [state.json["seq"] for state in states]
    assert seqs == sorted(set(seqs))


def test_tokens_alone_publish_nothing(broker: Mosquitto) -> None:
    with Listener(broker) as listener, publishing(broker.url) as node:
        assert listener.hears(lambda heard: bool(heard.of("state")))
        for step in range(25):
            node.change(step=step, time_s=float(step), mode_age_s=float(step))
            time.sleep(0.1)
        node.append(1)
        assert listener.hears(lambda heard: bool(heard.of("event")))
        assert len(listener.of("state")) == 1


def test_a_heartbeat_repeats_the_state(broker: Mosquitto) -> None:
    with Listener(broker) as listener, publishing(broker.url, heartbeat_s=1.5):
        assert listener.hears(lambda heard: len(heard.of("state")) >= 3)
        assert len(listener.of("info")) == 1


def test_a_clean_end_tells_the_last_events_and_then_offline(broker: Mosquitto) -> None:
    with Listener(broker) as listener:
        with publishing(broker.url) as node:
            assert node.connects()
            assert listener.hears(lambda heard: bool(heard.of("state")))
            node.append(1, 2, 3)
        assert listener.hears(lambda heard: heard.texts("availability")[-1] == "offline")
        assert [heard.json["seq"] for heard in listener.of("event")] == [1, 2, 3]
        assert listener.heard[-1].topic == AVAILABLE
        time.sleep(HASTY.will_delay_s + 1)
        assert listener.texts("availability") == ["online", "offline"]
        assert not node.publisher.status.is_connected


@contextmanager
def another_process(broker: Mosquitto) -> Iterator[None]:
    """A publisher that is killed at the end."""
    script = (
        f"import sys, time; sys.path.insert(0, {str(TESTS)!r})\n"
        "from mqtt.publishing import Timing, publishing\n"
        f"with publishing({broker.url!r}, timing=Timing(will_delay_s=1)):\n"
        "    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_the_state_that_is_kept_is_the_last_one(broker: Mosquitto) -> None:
    """Even if the one before it was told less than a second before the end."""
    with Listener(broker) as listener:
        with publishing(broker.url) as node:
            assert listener.hears(lambda heard: bool(heard.of("state")))
            node.change(health=Health.DRAINING)
        assert listener.hears(lambda heard: "offline" in heard.texts("availability"))
        assert listener.of("state")[-1].json["health"] == "draining"


def test_a_process_that_is_killed_leaves_its_will(broker: Mosquitto) -> None:
    with Listener(broker) as listener:
        with another_process(broker):
            assert listener.hears(lambda heard: bool(heard.of("state")))
        assert listener.hears(lambda heard: heard.texts("availability") == ["online", "offline"])
    with Listener(broker) as later:
        assert later.hears(lambda heard: heard.texts("availability") == ["offline"])


async def test_without_a_url_it_is_off() -> None:
    node = make_node(None)
    await node.publisher.run()
    assert not node.publisher.status.is_connected
