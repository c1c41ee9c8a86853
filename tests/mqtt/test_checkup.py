"""The doctor's look at a broker finds what a confirmed message hides, and disturbs nobody."""

import asyncio
import gc
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from broker import Heard, Listener, Mosquitto, free_port, running_mosquitto
from mqtt.publishing import BRIEF, publishing
from mqtt.secured import listener, login
from mqtt.wire import wired
from schemas import validate_all
from server.scripted import ScriptedWorker

from adaptive_kv.config import MqttSettings
from adaptive_kv.mqtt.checkup import CheckupError, Patience, check_broker

BASE = "adaptive-kv/v1/edge-07"
HURRIED = Patience(kept_s=0.5, echo_s=1.0, listen_s=1.5)
OURS = "00c0ffee"
"""The boot of a node that `publishing` makes."""


def look(url: str, own_boot_id: str | None = None, **settings: Any) -> str:
    chosen = MqttSettings(url=url, **{"node": "edge-07", **settings})
    return asyncio.run(check_broker(chosen, own_boot_id, HURRIED))


@contextmanager
def ruled(folder: Path, *rules: str) -> Any:
    file = folder / "rules"
    file.write_text("".join(f"topic {rule}\n" for rule in rules))
    file.chmod(0o600)
    options = ["allow_anonymous true", f"acl_file {file}"]
    with running_mosquitto(folder, options) as broker:
        yield broker


def valid(heard: list[Heard]) -> None:
    """But for messages without content, which say nothing."""
    validate_all([message for message in heard if message.payload])


def test_a_box_by_the_example_rules_is_well_before_its_first_start(secured: Mosquitto) -> None:
    ours = login(secured, "edge-07") | {"commands": True, "homeassistant": True}
    with listener(secured, "witness") as witness:
        assert look(secured.url, **ours) == "returns what edge-07 says"
        valid(witness.heard)
        assert not any(heard.retain for heard in witness.heard)
        said = {heard.topic.removeprefix(f"{BASE}/") for heard in witness.heard}
    assert said == {
        *("availability", "info", "state", "event", "cmd-result", "cmd/ping"),
        "homeassistant/device/edge-07/config",
    }
    with listener(secured, "witness") as later:
        assert not later.heard, "nothing is kept"


def test_a_box_that_is_called_differently_is_told_so(secured: Mosquitto) -> None:
    """Its rules are those of its user; the broker says in MQTT 5 that it denies a message."""
    with pytest.raises(CheckupError, match=f"denies us to write {BASE}/availability, {BASE}/info"):
        look(secured.url, **login(secured, "edge-08"))


@pytest.mark.parametrize("kind", ["availability", "info", "state", "event", "cmd-result"])
def test_one_topic_that_is_denied_is_named(tmp_path: Path, kind: str) -> None:
    kinds = {"availability", "info", "state", "event", "cmd-result"} - {kind}
    with (
        ruled(tmp_path, *(f"readwrite {BASE}/{each}" for each in kinds)) as broker,
        pytest.raises(CheckupError, match=f"^denies us to write {BASE}/{kind}$"),
    ):
        look(broker.url)


def test_an_older_broker_hides_it_but_returns_nothing(tmp_path: Path) -> None:
    kinds = ("availability", "info", "event", "cmd-result")
    with (
        ruled(tmp_path, *(f"readwrite {BASE}/{each}" for each in kinds)) as broker,
        wired(broker, old_answer=b"\x20\x02\x00\x01") as wire,
        pytest.raises(CheckupError, match=f"did not return it on {BASE}/state: may this node"),
    ):
        look(wire.url)


def test_a_box_that_may_not_hear_its_commands_is_told_so(tmp_path: Path) -> None:
    kinds = ("availability", "info", "state", "event", "cmd-result")
    rules = (*(f"readwrite {BASE}/{kind}" for kind in kinds), f"write {BASE}/cmd/#")
    with ruled(tmp_path, *rules) as broker:
        assert look(broker.url) == "returns what edge-07 says"
        with pytest.raises(CheckupError, match=f"did not return it on {BASE}/cmd/ping"):
            look(broker.url, commands=True)


def test_a_service_that_runs_is_listened_to_and_not_disturbed(broker: Mosquitto) -> None:
    with publishing(broker.url, timing=BRIEF, commands=True) as node, Listener(broker) as witness:
        worker = ScriptedWorker(node.mailbox)
        worker.start()
        assert witness.hears(lambda it: bool(it.of("state")))
        witness.heard.clear()
        assert (
            look(broker.url, OURS, commands=True) == "returns what edge-07 publishes, which obeys"
        )
        assert {heard.topic for heard in witness.heard} <= {
            *(f"{BASE}/state", f"{BASE}/cmd/ping", f"{BASE}/cmd-result")
        }
        valid(witness.heard)
        assert node.is_connected()
        assert not witness.of("availability")
        worker.stop.set()
        worker.join()


def test_a_service_that_does_not_hear_its_commands_is_found_out(broker: Mosquitto) -> None:
    with publishing(broker.url, timing=BRIEF) as node:
        assert node.connects()
        with pytest.raises(CheckupError, match="does not answer a ping"):
            look(broker.url, OURS, commands=True)


def test_a_state_that_does_not_arrive_is_found_out(tmp_path: Path) -> None:
    with (
        ruled(tmp_path, f"readwrite {BASE}/availability", f"readwrite {BASE}/info") as broker,
        publishing(broker.url, timing=BRIEF) as node,
    ):
        assert node.connects()
        with pytest.raises(CheckupError, match=f"nothing comes on {BASE}/state"):
            look(broker.url, OURS)


def test_a_box_that_is_online_from_elsewhere_is_another_one(broker: Mosquitto) -> None:
    with publishing(broker.url, timing=BRIEF) as node:
        assert node.connects()
        with pytest.raises(CheckupError, match=r"online as boot 00c0ffee, .* no service answers"):
            look(broker.url)


def test_two_boxes_that_push_each_other_out_are_found_out(broker: Mosquitto) -> None:
    """They have the same name, and so the same client id."""
    with publishing(broker.url) as one, publishing(broker.url, boot_id="0badcafe") as other:
        assert one.connects()
        assert other.connects()
        with pytest.raises(CheckupError, match=r"online as boot 0badcafe, but here boot 00c0ffee"):
            look(broker.url, OURS)


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_what_keeps_us_out_is_told(secured: Mosquitto, tmp_path: Path) -> None:
    ours = login(secured, "edge-07")
    wrong: dict[str, Callable[[], object]] = {
        "Not authorized": lambda: look(secured.url, **(ours | {"username": "edge-08"})),
        "CERTIFICATE_VERIFY_FAILED": lambda: look(secured.url, **(ours | {"ca_file": None})),
        "refused": lambda: look(f"mqtt://127.0.0.1:{free_port()}"),
    }
    for why, check in wrong.items():
        with pytest.raises(CheckupError, match=why):
            check()
    gc.collect()
