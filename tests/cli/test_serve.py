"""The service starts, serves, drains and ends as a supervisor expects."""

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from broker import Listener, running_mosquitto
from cli.command import COMMAND, clean_environment
from cli.notified import Notified

ASK = {"prompt": "def main", "temperature": 0, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Served:
    process: subprocess.Popen[str]
    url: str
    notified: Notified


@contextmanager
def starting(
    home: Path, *arguments: str, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], Notified]]:
    """The service as systemd would start it, on a port of its choice."""
    address = home / "notify"
    environment = clean_environment(home, {"NOTIFY_SOCKET": str(address)} | variables)
    command = [COMMAND, "serve", "--device", "cpu", "--port", "0", *arguments]
    with (
        Notified(address) as notified,
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=home, env=environment
        ) as process,
    ):
        try:
            yield process, notified
        finally:
            process.kill()


@contextmanager
def serving(home: Path, *arguments: str, **variables: str) -> Iterator[Served]:
    """The service once it listens."""
    with starting(home, *arguments, **variables) as (process, notified):
        yield Served(process, listening(process), notified)


def listening(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        found = re.search(r"http://[0-9.:]+", line)
        if found and '"listening"' in line:
            return found[0]
    raise AssertionError("".join(lines))


@contextmanager
def ask(url: str, **parameters: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """The chunks of a streamed answer as they come."""
    body = ASK | {"stream": True} | parameters
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        assert response.status_code == 200, response.read()
        lines = (line.removeprefix("data: ") for line in response.iter_lines())
        yield (json.loads(line) for line in lines if line.startswith("{"))


def test_a_service_tells_systemd_and_finishes_what_it_began(tmp_path: Path) -> None:
    """From READY over a pinned mode and a drain, which takes nothing new, to a clean end."""
    with serving(tmp_path, "--mode", "int8") as served:
        url = f"{served.url}/v1/completions"
        assert served.notified.recv(100) == b"READY=1"
        assert httpx.get(f"{served.url}/readyz").status_code == 200
        assert httpx.get(f"{served.url}/status").json()["pinned"] is True
        with ask(url, max_tokens=300) as answer:
            next(answer)
            served.process.send_signal(signal.SIGTERM)
            assert served.notified.recv(100) == b"STOPPING=1"
            refused = httpx.post(url, json=ASK, timeout=60)
            last = list(answer)[-1]
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert last["choices"][0]["finish_reason"] == "length"
        assert served.process.wait(60) == 0


def test_what_does_not_finish_in_time_is_failed(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[server]\ndrain_timeout_s = 0.1\n")
    with serving(tmp_path, "--config", "mine.toml") as served:
        with ask(f"{served.url}/v1/completions", max_tokens=3000) as answer:
            next(answer)
            served.process.send_signal(signal.SIGTERM)
            assert list(answer)[-1]["error"]["code"] == "stopping"
        assert served.process.wait(60) == 0


def test_the_next_turn_of_a_chat_begins_with_what_the_last_one_left(tmp_path: Path) -> None:
    words = [{"role": "user", "content": "def main(arguments): " * 40}]
    with serving(tmp_path) as served, httpx.Client(base_url=served.url, timeout=60) as client:
        first = client.post("/v1/chat/completions", json={"messages": words, "max_tokens": 40})
        words += [first.json()["choices"][0]["message"], {"role": "user", "content": "And then?"}]
        turn = {"messages": words, "max_tokens": 5, "stream": True}
        turn |= {"stream_options": {"include_usage": True}}
        second = client.post("/v1/chat/completions", json=turn)
    before = first.json()["usage"]
    after = json.loads(second.text.split("data: ")[-2])["usage"]
    assert before["prompt_tokens_details"] == {"cached_tokens": 0}
    assert before["prompt_tokens"] > 128
    num_cached = after["prompt_tokens_details"]["cached_tokens"]
    assert before["prompt_tokens"] - 64 < num_cached < after["prompt_tokens"]


def test_a_broker_hears_of_the_drain_and_that_we_are_gone(tmp_path: Path) -> None:
    with running_mosquitto(tmp_path) as broker, Listener(broker) as listener:
        with serving(tmp_path, "--mqtt-url", broker.url, "--node", "box") as served:
            assert listener.hears(lambda heard: heard.texts("availability") == ["online"])
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(60) == 0
        assert listener.hears(lambda heard: heard.texts("availability") == ["online", "offline"])
        assert [heard.json["type"] for heard in listener.of("event")] == ["drain"]
        (info,) = listener.of("info")
        assert (info.json["node"], info.json["model"]) == ("box", "demo")
        assert {heard.topic.rsplit("/", 1)[0] for heard in listener.heard} == {"adaptive-kv/v1/box"}


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as served,
        ask(f"{served.url}/v1/completions", max_tokens=3000) as answer,
    ):
        next(answer)
        assert served.notified.recv(100) == b"READY=1"
        served.process.send_signal(signal.SIGTERM)
        assert served.notified.recv(100) == b"STOPPING=1"
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 1


def test_a_taken_port_exits_with_78(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [COMMAND, "serve", "--device", "cpu", "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
            env=clean_environment(tmp_path),
        )
    assert done.returncode == 78
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
