"""The doctor says what is well and what is not."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from broker import free_port, running_mosquitto

Run = Callable[..., CompletedProcess[str]]


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
    assert checks(done) == dict.fromkeys(("device", "memory", "model", "policy", "broker"), True)


def test_each_check_is_one_line(adaptive_kv: Run) -> None:
    done = adaptive_kv("doctor", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", name] for name in ("device", "memory", "model", "policy", "broker")
    ]


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
