"""What is ordered over MQTT is obeyed once, in time, and answered; or not at all."""

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from broker import Listener, Mosquitto, comes_true
from hypothesis import given
from hypothesis import strategies as st
from mqtt.publishing import BRIEF, CARD, Node, make_node, publishing
from mqtt.wire import wired
from schemas import validate, validate_all
from server.scripted import ScriptedWorker
from structlog.testing import capture_logs

from adaptive_kv.documents import COMMANDS
from adaptive_kv.engine.client import EngineClient
from adaptive_kv.errors import ConfigError
from adaptive_kv.mqtt.commands import Commands, Orders
from adaptive_kv.mqtt.outbox import Bucket

BASE = "adaptive-kv/v1/edge-07"
numbers = itertools.count()


def soon(seconds: float = 30.0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def order(**fields: Any) -> dict[str, Any]:
    return {"id": f"n{next(numbers)}", "not_after": soon(), **fields}


@dataclass
class Commander:
    """Somebody who orders and hears the answers."""

    listener: Listener
    node: Node

    def send(self, name: str, command: object, *, retain: bool = False) -> None:
        payload = command if isinstance(command, bytes) else json.dumps(command)
        self.listener.send(f"{BASE}/cmd/{name}", payload, retain=retain)

    def results(self) -> list[dict[str, Any]]:
        return [heard.json for heard in self.listener.of("cmd-result")]

    def asks(self, name: str, **fields: Any) -> dict[str, Any]:
        """Order, and the answer."""
        command = order(**fields)
        validate(f"cmd/{name}", command)
        self.send(name, command)
        return self.answer(command["id"])

    def answer(self, id_: str | None) -> dict[str, Any]:
        assert comes_true(lambda: any(result["id"] == id_ for result in self.results()))
        (found,) = [result for result in self.results() if result["id"] == id_]
        return found

    def held(self) -> str | None:
        """The mode that is pinned."""
        status = self.node.mailbox.status
        return status.mode if status.pinned else None

    def is_answered(self) -> bool:
        """Whether a ping is, so that whatever came before it has been dealt with."""
        return self.asks("ping")["error"] is None


@contextmanager
def commanding(broker: Mosquitto, url: str | None = None, **settings: Any) -> Iterator[Commander]:
    """A node that takes commands, with a worker behind it that pins what it is told to."""
    with (
        Listener(broker) as listener,
        publishing(url or broker.url, timing=BRIEF, **{"commands": True, **settings}) as node,
    ):
        worker = ScriptedWorker(node.mailbox)
        worker.start()
        assert listener.hears(lambda heard: bool(heard.of("state")))
        try:
            yield Commander(listener, node)
        finally:
            worker.stop.set()
            worker.join()
        for heard in listener.of("cmd-result"):
            validate("cmd-result", heard.json)


@pytest.fixture
def commander(broker: Mosquitto) -> Iterator[Commander]:
    with commanding(broker) as commander:
        yield commander


def test_a_mode_is_held_and_given_back(commander: Commander) -> None:
    """The state says so, too."""
    told = commander.listener.of
    answer = commander.asks("set-mode", mode="int4")
    assert answer == {"id": answer["id"], "status": "ok", "error": None}
    assert commander.held() == "int4"
    assert comes_true(lambda: told("state")[-1].json["mode"] == "int4")
    assert commander.asks("resume-auto")["status"] == "ok"
    assert commander.held() is None
    assert commander.asks("set-mode", mode="window:64+int4")["status"] == "ok"
    assert commander.held() == "window:64+int4"
    assert commander.asks("set-mode", mode="auto")["status"] == "ok"
    assert commander.held() is None
    validate_all(commander.listener.heard)


def test_a_broker_of_mqtt_3_brings_commands_too(broker: Mosquitto) -> None:
    with (
        wired(broker, old_answer=b"\x20\x02\x00\x01") as wire,
        commanding(broker, wire.url) as commander,
    ):
        assert commander.asks("set-mode", mode="int4")["status"] == "ok"
        assert commander.held() == "int4"


def test_the_end_may_be_told_in_seconds_since_the_epoch(commander: Commander) -> None:
    assert commander.asks("ping", not_after=time.time() + 5)["status"] == "ok"


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("int5", "unknown cache mode 'int5': use full, int8"),
        ("window:0", "unknown cache mode 'window:0'"),
        ("int8", "int8 cannot be used with 'demo'"),
        ("x" * 33, "mode: String should have at most 32 characters"),
    ],
)
def test_a_mode_that_cannot_be_is_refused_in_words(
    commander: Commander, mode: str, why: str
) -> None:
    command = order(mode=mode)
    commander.send("set-mode", command)
    result = commander.answer(command["id"])
    assert result["status"] == "error"
    assert why in result["error"]
    assert commander.held() is None


def test_a_worker_that_does_not_take_it_up_is_told_of(broker: Mosquitto) -> None:
    with Listener(broker) as listener, publishing(broker.url, commands=True) as node:
        assert node.connects()
        commander = Commander(listener, node)
        assert "has not taken it up" in commander.asks("set-mode", mode="int4")["error"]


def test_a_reload_that_takes_long_keeps_nobody_waiting(broker: Mosquitto) -> None:
    """It is answered when it is done, in the words of what refused it."""
    may_end = asyncio.Event()

    async def reload() -> None:
        await may_end.wait()
        raise ConfigError("bad configuration:\n  memory.flour: unknown key")

    with commanding(broker, reload=reload) as commander:
        command = order()
        commander.send("reload-config", command)
        assert commander.is_answered()
        assert all(result["id"] != command["id"] for result in commander.results())
        may_end._loop.call_soon_threadsafe(may_end.set)  # type: ignore[attr-defined]
        result = commander.answer(command["id"])
        assert result["error"] == "bad configuration: memory.flour: unknown key"


def test_a_bug_is_answered_and_ends_nothing(broker: Mosquitto) -> None:
    async def reload() -> None:
        raise ZeroDivisionError

    with commanding(broker, reload=reload) as commander:
        assert commander.asks("reload-config")["error"] == "internal error; the log has it"
        assert commander.is_answered()


def test_what_the_broker_has_kept_is_not_obeyed(broker: Mosquitto) -> None:
    """Neither from before we came, nor as it is sent."""
    with Listener(broker) as early:
        early.send(f"{BASE}/cmd/set-mode", json.dumps(order(mode="int4")), retain=True)
    with capture_logs() as logs, commanding(broker) as commander:
        commander.send("set-mode", order(mode="int4"), retain=True)
        assert commander.is_answered()
        assert len(commander.results()) == 1
        assert commander.held() is None
    whys = [log["why"] for log in logs if log["event"] == "command_ignored"]
    assert whys == ["commands are not to be retained"] * 2


def test_a_replay_is_not_obeyed_again(commander: Commander) -> None:
    command = order(mode="int4")
    commander.send("set-mode", command)
    assert commander.answer(command["id"])["status"] == "ok"
    assert commander.asks("resume-auto")["status"] == "ok"
    commander.send("set-mode", command)
    commander.send("ping", command | {"mode": None})
    assert commander.is_answered()
    assert commander.held() is None


def test_what_comes_too_late_is_not_obeyed(commander: Commander) -> None:
    command = order(mode="int4", not_after=soon(-1))
    commander.send("set-mode", command)
    result = commander.answer(command["id"])
    assert result["status"] == "error"
    assert "too late by the clock of this node" in result["error"]
    assert commander.held() is None


def test_a_broker_that_kept_a_command_through_an_outage_brings_it_in_time_or_in_vain(
    broker: Mosquitto,
) -> None:
    """A session of MQTT 5 outlives a connection, and so does what was sent to it."""
    with wired(broker) as wire, commanding(broker, wire.url) as commander:
        wire.cut()
        assert comes_true(lambda: not commander.node.is_connected())
        late, timely = order(mode="int4", not_after=soon(0.5)), order()
        commander.send("set-mode", late)
        commander.send("ping", timely)
        time.sleep(1)
        wire.mend()
        assert commander.answer(timely["id"])["status"] == "ok"
        assert "too late" in commander.answer(late["id"])["error"]
        assert commander.held() is None


@pytest.mark.parametrize(
    ("name", "command", "why"),
    [
        ("set-mode", b"{" + b" " * 4096 + b"}", "4098 bytes are too many"),
        ("set-mode", b"\xff\xfe", "Invalid JSON"),
        ("set-mode", b"[" * 4000, "Invalid JSON"),
        ("set-mode", b"[]", "Input should be an object"),
        ("set-mode", {"id": "a", "not_after": soon()}, "mode: Field required"),
        ("ping", {"not_after": soon()}, "id: Field required"),
        ("ping", {"id": "a"}, "not_after: Field required"),
        ("ping", {"id": "a", "not_after": "2026-11-23T03:51:38"}, "timezone"),
        ("ping", {"id": "../../etc", "not_after": soon()}, "id: String should match"),
        ("ping", {"id": "a\n", "not_after": soon()}, "id: String should match"),
        ("reload-config", {"id": "a", "not_after": soon(), "path": "/etc/x"}, "path: Extra"),
        ("load-model", {"id": "a", "not_after": soon(), "model": "x"}, "no such command"),
        ("../admin", {}, "no such command"),
    ],
)
def test_what_is_no_command_is_refused_in_words(
    commander: Commander, name: str, command: object, why: str
) -> None:
    commander.send(name.replace("/", "|"), command)
    assert comes_true(lambda: bool(commander.results()))
    (result,) = commander.results()
    assert result["status"] == "error"
    assert why in result["error"]
    is_readable = isinstance(command, dict) and command.get("id") == "a"
    assert result["id"] == ("a" if is_readable else None)
    assert commander.is_answered()


def test_of_a_flood_little_is_obeyed_and_one_refusal_is_told(broker: Mosquitto) -> None:
    with capture_logs() as logs, commanding(broker) as commander:
        for _ in range(60):
            commander.send("ping", order())
        time.sleep(1.5)
        assert commander.is_answered()
        refused = [result for result in commander.results() if result["status"] == "error"]
        num_obeyed = len(commander.results()) - len(refused)
        assert 10 < num_obeyed < 40
        assert "too many commands: 10 at once and 1 a second" in refused[0]["error"]
        assert len(refused) <= num_obeyed - 9, "one each time that the bucket runs dry"
    numbers = [log["number"] for log in logs if log["event"] == "commands_refused"]
    assert sum(numbers) == 60 + 1 - num_obeyed


def test_everything_that_is_done_or_not_is_in_the_log(broker: Mosquitto) -> None:
    with capture_logs() as logs, commanding(broker) as commander:
        done, refused = order(mode="int4"), order(mode="int9" * 9)
        commander.send("set-mode", refused)
        commander.send("set-mode", done)
        commander.answer(done["id"])
    audited = [log for log in logs if log["event"] == "command"]
    assert [(log["command"], log["id"], log["status"]) for log in audited] == [
        ("set-mode", refused["id"], "error"),
        ("set-mode", done["id"], "ok"),
    ]


def test_commands_are_off_unless_they_are_switched_on(broker: Mosquitto) -> None:
    with commanding(broker, commands=False) as commander:
        commander.send("set-mode", order(mode="int4"))
        commander.node.append(1)
        assert comes_true(lambda: bool(commander.listener.of("event")))
        assert not commander.results()
        assert commander.held() is None
        assert commander.listener.of("info")[-1].json["commands"] == []


def test_the_info_names_what_is_obeyed(commander: Commander) -> None:
    (info,) = commander.listener.of("info")
    assert info.json["commands"] == list(COMMANDS)


COMMAND_LIKE = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=70) | st.integers(),
        "not_after": st.text(max_size=30) | st.floats() | st.none(),
        "mode": st.text(max_size=40) | st.lists(st.text()),
        "path": st.text(),
    },
)


@given(
    st.sampled_from([*COMMANDS, "x"]),
    st.binary(max_size=200) | st.builds(lambda command: json.dumps(command).encode(), COMMAND_LIKE),
)
def test_nothing_that_is_not_a_command_is_obeyed(name: str, payload: bytes) -> None:
    """Whatever comes in: it raises nothing, orders nothing, and is answered at most once."""
    node = make_node(None)

    async def take() -> list[str]:
        client = EngineClient(node.mailbox, max_in_flight=1)
        commands = Commands(Orders(client=client, card=CARD, reload=asyncio.sleep))  # type: ignore[arg-type]
        commands.take(name, payload, is_retained=False)
        await commands.close()
        return [result.status for result in commands.untold]

    assert asyncio.run(take()) in (["error"], [])
    assert not node.mailbox.collect()


def test_what_is_remembered_is_bounded(broker: Mosquitto) -> None:
    async def take() -> int:
        client = EngineClient(make_node(None).mailbox, max_in_flight=1)
        commands = Commands(Orders(client=client, card=CARD, reload=asyncio.sleep))  # type: ignore[arg-type]
        commands._bucket = Bucket(per_s=0, burst=3000)
        for _ in range(3000):
            commands.take("ping", json.dumps(order()).encode(), is_retained=False)
            await asyncio.sleep(0)
        await commands.close()
        assert len(commands.untold) == 64
        return len(commands._seen)

    assert asyncio.run(take()) == 1024
