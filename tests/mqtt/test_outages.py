import threading
import time
from pathlib import Path

from broker import PATIENT_S, Listener, Mosquitto, comes_true, free_port
from mqtt.publishing import HASTY, Node, publishing
from mqtt.wire import wired
from schemas import validate
from statuses import INT4
from structlog.testing import capture_logs

from adaptive_kv.events import EventLog


def delivered(listener: Listener) -> set[int]:
    """A message may be told twice when its confirmation was lost."""
    return {heard.json["seq"] for heard in listener.of("event")}


def state_says(listener: Listener, key: str, value: object) -> bool:
    states = listener.of("state")
    return bool(states) and states[-1].json[key] == value


def is_whole(node: Node, listener: Listener) -> bool:
    """Whether every event was delivered, or is counted where subscribers can see it."""
    states = listener.of("state")
    num_dropped = states[-1].json["dropped_events"] if states else 0
    return len(delivered(listener)) + num_dropped == node.events.last_seq


def test_a_broker_that_comes_late_is_found(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    try:
        with publishing(broker.url) as node:
            assert comes_true(lambda: node.publisher.status.last_error is not None)
            assert not node.is_connected()
            broker.start()
            with Listener(broker) as listener:
                assert listener.hears(lambda heard: len(heard.heard) >= 3)
    finally:
        broker.stop()


def test_a_broker_that_lost_everything_is_told_again(broker: Mosquitto) -> None:
    with publishing(broker.url) as node:
        assert node.connects()
        broker.kill()
        assert comes_true(lambda: not node.is_connected())
        node.change(mode=INT4)
        broker.start()
        assert node.connects()
        with Listener(broker) as listener:
            assert listener.hears(lambda heard: state_says(heard, "mode", "int4"))
            assert listener.texts("availability") == ["online"]
            assert len(listener.of("info")) == 1


def test_what_happens_in_an_outage_is_told_after_it(broker: Mosquitto) -> None:
    with Listener(broker) as listener, wired(broker) as wire, publishing(wire.url) as node:
        assert listener.hears(lambda heard: bool(heard.of("state")))
        wire.cut()
        node.append(1, 2, 3)
        assert comes_true(lambda: not node.is_connected())
        node.append(4)
        wire.mend()
        assert listener.hears(lambda heard: delivered(heard) == {1, 2, 3, 4})
        assert node.documents.dropped_events == 0


def test_a_connection_that_breaks_leaves_the_will_until_it_is_back(broker: Mosquitto) -> None:
    with Listener(broker) as listener, wired(broker) as wire, publishing(wire.url):
        assert listener.hears(lambda heard: bool(heard.of("state")))
        wire.cut()
        assert listener.hears(lambda heard: heard.texts("availability") == ["online", "offline"])
        wire.mend()
        assert listener.hears(lambda heard: heard.texts("availability")[-1] == "online")
        assert listener.hears(lambda heard: len(heard.of("info")) == len(heard.of("state")) == 2)


def test_no_event_is_lost_however_often_the_connection_breaks(broker: Mosquitto) -> None:
    with Listener(broker) as listener, wired(broker) as wire, publishing(wire.url) as node:
        for number in range(6):
            assert node.connects()
            node.append(*range(5))
            if number % 2:
                wire.cut()
            node.append(*range(5))
            wire.mend()
        assert listener.hears(lambda heard: len(delivered(heard)) == node.events.last_seq == 60)
        seqs = [heard.json["seq"] for heard in listener.of("event")]
        assert seqs == sorted(seqs)
        assert node.documents.dropped_events == 0


def test_what_the_log_let_go_in_an_outage_is_counted(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    try:
        with publishing(broker.url, EventLog(capacity=10)) as node:
            node.append(*range(25))
            broker.start()
            assert node.connects()
            with Listener(broker) as listener:
                assert listener.hears(lambda heard: state_says(heard, "dropped_events", 15))
                node.append(26)
                assert listener.hears(lambda heard: 26 in delivered(heard))
            assert node.documents.dropped_events == 15
    finally:
        broker.stop()


def test_a_frozen_broker_blocks_nobody_and_loses_nothing(broker: Mosquitto) -> None:
    with Listener(broker) as listener, publishing(broker.url, EventLog(capacity=50)) as node:
        assert listener.hears(lambda heard: bool(heard.of("state")))
        broker.freeze()
        worker = threading.Thread(target=node.append, args=range(500))
        worker.start()
        worker.join(PATIENT_S)
        assert not worker.is_alive()
        assert comes_true(lambda: not node.is_connected())
        node.change(mode=INT4)
        broker.thaw()
        assert listener.hears(lambda heard: state_says(heard, "mode", "int4"))
        assert listener.hears(lambda heard: is_whole(node, heard))
        time.sleep(HASTY.will_delay_s + 1)
        assert listener.texts("availability")[-1] == "online"
        for heard in listener.of("state"):
            validate("state", heard.json)


def test_leaving_a_frozen_broker_takes_no_longer_than_the_farewell(broker: Mosquitto) -> None:
    """The end would otherwise wait for a broker that never answers; the will speaks for us."""
    with Listener(broker) as listener:
        with publishing(broker.url) as node:
            assert listener.hears(lambda heard: bool(heard.of("state")))
            broker.freeze()
            node.append(1)
        broker.thaw()
        assert listener.hears(lambda heard: heard.texts("availability")[-1] == "offline")


def test_the_end_may_come_while_a_frozen_broker_is_waited_for(broker: Mosquitto) -> None:
    """Nothing is left behind that asyncio would complain of."""
    broker.freeze()
    with publishing(broker.url):
        time.sleep(0.3)
    broker.thaw()


def test_an_outage_is_logged_once_and_so_is_its_end(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    try:
        with capture_logs() as logs, publishing(broker.url) as node:
            assert comes_true(lambda: node.publisher.status.last_error is not None)
            time.sleep(1)
            broker.start()
            assert node.connects()
            broker.kill()
            assert comes_true(lambda: not node.is_connected())
            time.sleep(1)
        assert [log["event"] for log in logs] == ["mqtt_lost", "mqtt_connected", "mqtt_lost"]
    finally:
        broker.stop()


def test_a_name_that_cannot_be_resolved_is_an_outage_like_any_other() -> None:
    for host in ("a..b", "nowhere.invalid"):
        with publishing(f"mqtt://{host}:{free_port()}") as node:
            assert comes_true(lambda: node.publisher.status.last_error is not None)


def test_the_status_says_since_when(broker: Mosquitto) -> None:
    with publishing(broker.url) as node:
        before_s = node.publisher.status.since_s
        assert node.connects()
        status = node.publisher.status
        assert before_s <= status.since_s <= time.time()
        assert status.last_error is None
        broker.kill()
        assert comes_true(lambda: node.publisher.status.last_error is not None)
        assert node.publisher.status.since_s >= status.since_s
