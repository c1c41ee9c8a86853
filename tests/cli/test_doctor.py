"""The doctor says what is well and what is not."""

import getpass
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def checks(done: CompletedProcess[str]) -> dict[str, bool]:
    return {check["name"]: check["ok"] for check in json.loads(done.stdout)["checks"]}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A real broker on which `reader` may read its commands and `mute` may do nothing."""
    program = shutil.which("mosquitto")
    if program is None:
        pytest.skip("mosquitto is absent")
    port = free_port()
    rules, config = tmp_path / "rules", tmp_path / "mosquitto.conf"
    rules.write_text("user reader\ntopic readwrite adaptive-kv/v1/#\n")
    rules.chmod(0o600)
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", f"acl_file {rules}"]
    config.write_text("\n".join([*lines, f"user {getpass.getuser()}"]))
    command = [program, "-c", str(config)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_for(port)
        yield f"mqtt://127.0.0.1:{port}"
        process.terminate()


def wait_for(port: int) -> None:
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(port)


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
