"""The doctor says what is well and what is not."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from broker import Listener, free_port, running_mosquitto
from cli.test_serve import serving
from schemas import validate_all

Run = Callable[..., CompletedProcess[str]]
CHECKS = ("device", "memory", "model", "policy", "broker", "unit")


def told(done: CompletedProcess[str], name: str) -> str:
    (text,) = [each["text"] for each in json.loads(done.stdout)["checks"] if each["name"] == name]
    return str(text)


def checks(done: CompletedProcess[str]) -> dict[str, bool]:
    return {check["name"]: check["ok"] for check in json.loads(done.stdout)["checks"]}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A broker that lets `reader` do everything of ours, and others nothing."""
    rules = tmp_path / "rules"
    rules.write_text("user reader\ntopic readwrite adaptive-kv/v1/#\n")
    rules.chmod(0o600)
    with running_mosquitto(tmp_path, ("allow_anonymous true", f"acl_file {rules}")) as running:
        yield running.url


def test_a_healthy_box_is_green(adaptive_kv: Run) -> None:
    done = adaptive_kv("doctor", "--json", "--device", "cpu", "--memory-budget", "1GiB")
    assert done.returncode == 0, done.stdout + done.stderr
    assert checks(done) == dict.fromkeys(CHECKS, True)


def test_each_check_is_one_line(adaptive_kv: Run) -> None:
    done = adaptive_kv("doctor", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in CHECKS]


def test_what_is_wrong_is_red_and_the_rest_still_looked_at(
    adaptive_kv: Run, tmp_path: Path
) -> None:
    (tmp_path / "memory.json").write_text("nonsense")
    model = tmp_path / "model"
    model.mkdir()
    done = adaptive_kv(
        *("doctor", "--json", "--device", "cpu", "--policy", "no_such_policy"),
        *("--memory-source", "file:memory.json", "--model", str(model)),
        *("--mqtt-url", f"mqtt://127.0.0.1:{free_port()}"),
    )
    assert done.returncode == 1
    assert checks(done) == {
        "device": True,
        "memory": False,
        "model": False,
        "policy": False,
        "broker": False,
        "unit": True,
    }
    assert "Traceback" not in done.stderr


def test_a_broker_that_lets_us_in_echoes(adaptive_kv: Run, broker: str) -> None:
    done = adaptive_kv(
        *("doctor", "--json", "--device", "cpu", "--mqtt-url", broker, "--node", "box"),
        ADAPTIVE_KV_MQTT__USERNAME="reader",
    )
    assert checks(done)["broker"] is True, done.stdout


def test_a_broker_that_swallows_our_messages_is_red(adaptive_kv: Run, broker: str) -> None:
    """It acknowledges what it denies, so that only an echo proves anything."""
    done = adaptive_kv(
        *("doctor", "--json", "--device", "cpu", "--mqtt-url", broker, "--node", "box"),
        ADAPTIVE_KV_MQTT__USERNAME="mute",
    )
    assert done.returncode == 1
    assert checks(done)["broker"] is False


def test_a_policy_that_ends_its_process_does_not_end_the_doctor(
    adaptive_kv: Run, tmp_path: Path
) -> None:
    """It is tried where the service would run it: in a process of its own."""
    file = tmp_path / "mine.py"
    file.write_text("import os\n\ndef decide(now):\n    os._exit(3)\n")
    done = adaptive_kv("doctor", "--json", "--device", "cpu", "--policy", f"{file}:decide")
    assert done.returncode == 1, done.stderr
    assert checks(done) == dict.fromkeys(CHECKS, True) | {"policy": False}
    assert "ended" in told(done, "policy")


def test_a_policy_of_somebody_else_is_asked_in_its_own_process(
    adaptive_kv: Run, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def decide(now):\n    return None\n")
    done = adaptive_kv("doctor", "--json", "--device", "cpu", "--policy", f"{file}:decide")
    assert told(done, "policy") == "mine.py:decide, in a process of its own, answers hold"


def test_a_service_that_runs_is_told_from_another_box_of_its_name(
    adaptive_kv: Run, tmp_path: Path
) -> None:
    """By what it answers over HTTP, on this box and with this configuration."""
    with (
        running_mosquitto(tmp_path) as broker,
        Listener(broker) as listener,
        serving(tmp_path, "--mqtt-url", broker.url, "--node", "box") as served,
    ):
        assert listener.hears(lambda it: bool(it.of("state")))
        ask = ("doctor", "--json", "--device", "cpu", "--mqtt-url", broker.url, "--node", "box")
        port = served.url.rpartition(":")[2]
        with ThreadPoolExecutor(2) as doctors:
            here, elsewhere = doctors.map(
                lambda port: adaptive_kv(*ask, ADAPTIVE_KV_SERVER__PORT=port),
                (port, str(free_port())),
            )
        validate_all(listener.heard)
    assert told(here, "broker") == f"{broker.url} returns what box publishes"
    assert "here no service answers: is there another box with this" in told(elsewhere, "broker")
    assert (here.returncode, elsewhere.returncode) == (0, 1)
