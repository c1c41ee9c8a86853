"""SIGHUP brings a changed configuration into the running service, whole or not at all."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from broker import Listener, comes_true, running_mosquitto
from cli.test_serve import ASK, Served, ask, serving, starting

START = """
[memory]
floor = "64MiB"
[cache]
ladder = ["full", "int8", "disabled"]
[policy]
deadline_s = 60
"""
CHANGED = """
[memory]
floor = "32MiB"
[cache]
ladder = ["full", "int4"]
[policy]
name = "fixed"
options = { mode = "full" }
[server]
max_running = 3
"""


def hang_up(served: Served) -> None:
    """Reload, as systemd would see it to the end."""
    served.process.send_signal(signal.SIGHUP)
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", served.notified.recv(100))
    assert served.notified.recv(100) == b"READY=1"


def logged(served: Served, event: str) -> dict[str, Any]:
    """The next record of a kind."""
    assert served.process.stderr is not None
    for line in served.process.stderr:
        record: dict[str, Any] = json.loads(line)
        if record["event"] == event:
            return record
    raise AssertionError(f"no {event} until the end")


def status(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{served.url}/status").json()
    return found


def shows(served: Served, claim: Callable[[dict[str, Any]], bool]) -> bool:
    return comes_true(lambda: claim(status(served)))


def test_what_can_change_changes_and_what_cannot_is_named(tmp_path: Path) -> None:
    """While a request runs, which notices nothing."""
    config = tmp_path / "mine.toml"
    config.write_text(START)
    with (
        running_mosquitto(tmp_path) as broker,
        Listener(broker) as listener,
        serving(tmp_path, "--config", "mine.toml", "--mqtt-url", broker.url) as served,
    ):
        url = f"{served.url}/v1/completions"
        assert served.notified.recv(100) == b"READY=1"
        before = httpx.post(url, json=ASK | {"max_tokens": 400}, timeout=60).json()
        with ask(url, max_tokens=400) as answer:
            texts = [next(answer)["choices"][0]["text"]]
            config.write_text(CHANGED)
            hang_up(served)
            texts += [chunk["choices"][0]["text"] for chunk in answer if chunk["choices"]]
        assert "".join(texts) == before["choices"][0]["text"]
        done = logged(served, "reloaded")
        keys = "cache.ladder memory.floor policy.deadline_s policy.name policy.options"
        assert sorted(done["changed"]) == keys.split()
        unchanged = logged(served, "restart_needed")
        assert (unchanged["level"], unchanged["keys"]) == ("warning", ["server.max_running"])
        assert shows(served, lambda now: now["policy"]["name"] == "fixed")
        assert status(served)["memory"]["floor_bytes"] == 32 * 2**20
        assert listener.hears(lambda heard: len(heard.of("info")) == 2)
        ladders = [heard.json["ladder"] for heard in listener.of("info")]
        assert ladders == [["full", "int8", "disabled"], ["full", "int4"]]


def test_what_is_wrong_changes_nothing_and_is_told_in_a_line(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(START)
    wrong = {
        "[memory\n": "not valid TOML",
        "[memory]\nflour = 1\n": "memory.flour: unknown key; did you mean memory.floor?",
        '[cache]\nladder = ["int5"]\n[memory]\nfloor = 1\n': "unknown cache mode 'int5'",
        '[policy]\nname = "lader"\n[memory]\nfloor = 1\n': "did you mean ladder?",
        '[policy]\nname = "fixed"\noptions = { mod = 1 }\n[memory]\nfloor = 1\n': "mod",
        '[policy]\nname = "absent.py"\n[memory]\nfloor = 1\n': "there is no file absent.py",
    }
    with serving(tmp_path, "--config", "mine.toml") as served:
        assert served.notified.recv(100) == b"READY=1"
        for text, reproach in wrong.items():
            config.write_text(text)
            hang_up(served)
            record = logged(served, "reload_refused")
            assert record["level"] == "error"
            assert reproach in record["error"]
            assert "\n" not in record["error"]
        found = status(served)
        assert found["memory"]["floor_bytes"] == 64 * 2**20
        assert (found["policy"]["name"], found["policy"]["status"]) == ("ladder", "ok")
        config.write_text(START.replace("64MiB", "65MiB"))
        hang_up(served)
        assert logged(served, "reloaded")["changed"] == ["memory.floor"]
        assert shows(served, lambda now: now["memory"]["floor_bytes"] == 65 * 2**20)


def test_a_hangup_before_the_service_is_up_is_a_reload_once_it_is(tmp_path: Path) -> None:
    with starting(tmp_path) as (process, notified):
        assert comes_true(lambda: bool(notified.news)), "it tells of its start"
        process.send_signal(signal.SIGHUP)
        assert notified.recv(100) == b"READY=1"
        assert notified.recv(100).startswith(b"RELOADING=1")
        assert notified.recv(100) == b"READY=1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_policy_that_takes_long_to_load_keeps_nobody_from_ending(tmp_path: Path) -> None:
    config, policy = tmp_path / "mine.toml", tmp_path / "slow.py"
    config.write_text(START)
    policy.write_text("import time\nopen('begun', 'w').close()\ntime.sleep(1000)\n")
    with serving(tmp_path, "--config", "mine.toml") as served:
        assert served.notified.recv(100) == b"READY=1"
        config.write_text(START + f'name = "{policy}"\n')
        served.process.send_signal(signal.SIGHUP)
        assert comes_true((tmp_path / "begun").exists)
        served.process.send_signal(signal.SIGTERM)
        assert logged(served, "draining")["requests"] == 0
        assert served.process.wait(60) == 0
        told = [served.notified.recv(100).split(b"=")[0] for _ in range(2)]
        assert told == [b"RELOADING", b"STOPPING"]
        assert served.notified.states.empty(), "nobody waited until the reload had ended"


def test_a_policy_that_was_replaced_comes_back_once_its_file_was_mended(tmp_path: Path) -> None:
    policy = tmp_path / "mine.py"
    policy.write_text("def decide(now):\n    return 1 / 0\n")
    with serving(tmp_path, "--policy", f"{policy}:decide") as served:
        assert served.notified.recv(100) == b"READY=1"
        assert shows(served, lambda now: now["policy"]["status"] == "fallback")
        assert status(served)["health"] == "degraded"
        policy.write_text("def decide(now):\n    return None\n")
        hang_up(served)
        assert logged(served, "reloaded")["policy"] == "mine.py:decide"
        assert shows(served, lambda now: now["policy"]["status"] == "ok")
        assert status(served)["policy"]["name"] == "mine.py:decide"
        assert status(served)["health"] == "ok"


def test_a_command_over_mqtt_reloads_and_is_told_what_came_of_it(tmp_path: Path) -> None:
    config, topic = tmp_path / "mine.toml", "adaptive-kv/v1/box/cmd/reload-config"
    config.write_text(START)
    with (
        running_mosquitto(tmp_path) as broker,
        Listener(broker) as listener,
        serving(
            *(tmp_path, "--config", "mine.toml", "--mqtt-url", broker.url, "--node", "box"),
            ADAPTIVE_KV_MQTT__COMMANDS="true",
        ) as served,
    ):

        def asked(id_: str) -> dict[str, Any]:
            listener.send(topic, json.dumps({"id": id_, "not_after": time.time() + 60}))
            assert listener.hears(lambda it: it.of("cmd-result")[-1:] != [])
            assert comes_true(lambda: listener.of("cmd-result")[-1].json["id"] == id_)
            return listener.of("cmd-result")[-1].json

        config.write_text(CHANGED)
        assert asked("a") == {"id": "a", "status": "ok", "error": None}
        assert shows(served, lambda now: now["policy"]["name"] == "fixed")
        config.write_text("[memory]\nflour = 1\n")
        refused = asked("b")
        assert refused["status"] == "error"
        assert "memory.flour: unknown key; did you mean memory.floor?" in refused["error"]
        assert status(served)["policy"]["name"] == "fixed"
