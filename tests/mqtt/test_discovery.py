"""Home Assistant finds the node, shows what the state says, and may select the mode."""

import json
from typing import Any

import pytest
from broker import Listener, Mosquitto, comes_true
from mqtt.homeassistant import check, selected, shown
from mqtt.publishing import BRIEF, publishing
from mqtt.secured import listener, login
from schemas import validate, validate_all
from server.scripted import ScriptedWorker
from statuses import WINDOW, make_status

from adaptive_kv.documents import COMMANDS, InfoDocument, info_document, state_document
from adaptive_kv.engine.status import Health
from adaptive_kv.mqtt.discovery import discovery
from adaptive_kv.mqtt.topics import Topics
from adaptive_kv.policy import Latency

TOPIC = "homeassistant/device/edge-07/config"
LADDER = ("full", "int4", "window:1024+int4")


def make_info(**changes: Any) -> InfoDocument:
    info: dict[str, Any] = {
        "node": "edge-07",
        "boot_id": "00c0ffee",
        "time": 0.0,
        "device": "cpu",
        "model": "demo",
        "memory_source": "file",
        "ladder": LADDER,
        "commands": COMMANDS,
    }
    return info_document(**{**info, **changes})


def made(**changes: Any) -> dict[str, Any]:
    document = discovery(Topics("site/lab", "edge-07"), make_info(**changes), expiry_s=90.0)
    found: dict[str, Any] = json.loads(document.to_json())
    validate("discovery", found)
    return found


def state(**changes: Any) -> dict[str, Any]:
    document = state_document(
        make_status(**changes), node="edge-07", boot_id="b", seq=1, time=0.0, dropped_events=0
    )
    found: dict[str, Any] = json.loads(document.to_json())
    return found


@pytest.mark.parametrize("commands", [(), COMMANDS])
def test_the_message_is_as_home_assistant_wants_it(commands: Any) -> None:
    check(TOPIC, made(commands=commands))


def test_it_is_about_this_node_and_its_topics() -> None:
    found = made()
    assert found["avty_t"] == "site/lab/v1/edge-07/availability"
    assert found["stat_t"] == "site/lab/v1/edge-07/state"
    assert found["cmps"]["set_mode"]["command_topic"] == "site/lab/v1/edge-07/cmd/set-mode"
    assert found["dev"]["name"] == "adaptive-kv edge-07"
    assert {"mode", "memory_free", "latency_p95", "set_mode"} <= found["cmps"].keys()


def test_every_entity_shows_what_the_state_says() -> None:
    now = state()
    now["memory"] |= {"free_bytes": 3 * 2**20, "cache_bytes": 2**19}
    values = {key: shown(component, now) for key, component in made()["cmps"].items()}
    assert values == {
        "mode": "full",
        "reason": "room to spare",
        "health": "ok",
        "memory_free": "3.0",
        "cache": "0.5",
        "latency_p50": "10.0",
        "latency_p95": "None",
        "set_mode": "auto",
    }


def test_every_health_is_an_option() -> None:
    health = made()["cmps"]["health"]
    for each in Health:
        assert shown(health, state(health=each)) in health["options"]


def test_nothing_measured_yet_is_no_value() -> None:
    unknown = state(latency=Latency(token_s=None, p50_s=None, p95_s=None))
    assert shown(made()["cmps"]["latency_p50"], unknown) == "None"


def test_the_selector_offers_the_ladder_and_shows_what_is_held() -> None:
    selector = made()["cmps"]["set_mode"]
    assert selector["options"] == ["auto", *LADDER]
    assert shown(selector, state(pinned=True, mode=WINDOW)) == WINDOW
    assert shown(made(ladder=("full",))["cmps"]["set_mode"], state(pinned=True, mode=WINDOW)) == (
        "None"
    ), "rather than an option that there is not"


def test_what_it_sends_is_a_command_each_time_another_one() -> None:
    selector = made()["cmps"]["set_mode"]
    commands = [json.loads(selected(selector, option)) for option in selector["options"]]
    for command in commands:
        validate("cmd/set-mode", command)
    assert len({command["id"] for command in commands}) == len(commands)


def test_without_commands_there_is_no_selector() -> None:
    found = made(commands=())
    assert "set_mode" not in found["cmps"]
    assert all("command_topic" not in component for component in found["cmps"].values())


def test_a_long_reason_is_cut_to_what_home_assistant_keeps() -> None:
    assert len(shown(made()["cmps"]["reason"], state(reason_text="x" * 400))) == 255


def test_selecting_a_mode_in_home_assistant_holds_it(secured: Mosquitto) -> None:
    """Through the real broker with its rules, over TLS, and back to what is shown."""
    settings = login(secured, "edge-07") | {"commands": True, "homeassistant": True}
    with (
        listener(secured, "homeassistant") as home,
        publishing(secured.url, timing=BRIEF, **settings) as node,
    ):
        worker = ScriptedWorker(node.mailbox)
        worker.start()
        assert home.hears(lambda heard: bool(heard.of("config")) and bool(heard.of("state")))
        (found,) = home.of("config")
        check(found.topic, found.json)
        selector = found.json["cmps"]["set_mode"]
        home.send(selector["command_topic"], selected(selector, "int4"))
        assert home.hears(lambda it: shown(selector, it.of("state")[-1].json) == "int4")
        home.send(selector["command_topic"], selected(selector, "auto"))
        assert home.hears(lambda it: shown(selector, it.of("state")[-1].json) == "auto")
        assert [heard.json["status"] for heard in home.of("cmd-result")] == ["ok", "ok"]
        worker.stop.set()
        worker.join()
        validate_all(home.heard)


def test_who_comes_later_finds_it_and_a_new_ladder_replaces_it(broker: Mosquitto) -> None:
    with publishing(broker.url, timing=BRIEF, homeassistant=True, commands=True) as node:
        assert node.connects()
        node.publisher.replace_info(make_info(ladder=("full",)))
        with Listener(broker) as listener:
            assert listener.hears(
                lambda it: (
                    [heard.json["cmps"]["set_mode"]["options"] for heard in it.of("config")]
                    == [["auto", "full"]]
                    or len(it.of("config")) == 2
                )
            )
            assert listener.of("config")[-1].topic == TOPIC
    with Listener(broker) as listener:
        assert listener.hears(lambda it: bool(it.of("config")))
        (found,) = listener.of("config")
        assert found.retain
        assert found.json["cmps"]["set_mode"]["options"] == ["auto", "full"]


def test_switched_off_it_is_taken_back_once(broker: Mosquitto) -> None:
    with publishing(broker.url, timing=BRIEF, homeassistant=True) as node:
        assert node.connects()
    with Listener(broker) as listener:
        assert listener.hears(lambda it: bool(it.of("config")))
        with publishing(broker.url, timing=BRIEF) as node:
            assert listener.hears(lambda it: it.texts("config")[-1] == "")
            broker.kill()
            assert comes_true(lambda: not node.is_connected())
            broker.start()
            assert node.connects()
            listener.wait_subscribed()
            node.append(1)
            assert listener.hears(lambda it: bool(it.of("event")))
        assert listener.texts("config")[1:] == [""]


def test_never_switched_on_nothing_is_said_about_it(broker: Mosquitto) -> None:
    with Listener(broker) as listener:
        with publishing(broker.url, timing=BRIEF) as node:
            node.append(1)
            assert node.has_told_all()
        assert listener.hears(lambda it: it.texts("availability")[-1:] == ["offline"])
        assert not listener.of("config")


@pytest.mark.parametrize("foreign", ['{"o": {"name": "zigbee2mqtt"}}', "[]", "no JSON"])
def test_what_others_have_announced_is_left_alone(broker: Mosquitto, foreign: str) -> None:
    with Listener(broker) as listener:
        listener.send(TOPIC, foreign, retain=True)
        with publishing(broker.url, timing=BRIEF) as node:
            node.append(1)
            assert listener.hears(lambda it: bool(it.of("event")))
        assert listener.texts("config") == [foreign]
