"""A real mosquitto on the loopback that can be killed, frozen and restarted, and a listener."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

PATIENT_S = 20.0


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def comes_true(claim: Callable[[], bool], within_s: float = PATIENT_S) -> bool:
    """Whether `claim` holds soon."""
    until_s = time.monotonic() + within_s
    while not claim() and time.monotonic() < until_s:
        time.sleep(0.01)
    return claim()


def mosquitto() -> str:
    """The broker's executable; skips where there is none."""
    found = shutil.which(
        "mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin"
    )
    if found is None:
        pytest.skip("mosquitto is not installed")
    return found


class Mosquitto:
    """A broker that keeps nothing over a restart. Several may run side by side."""

    def __init__(self, folder: Path, options: Sequence[str] = ("allow_anonymous true",)) -> None:
        self.port = free_port()
        self.ca_file: Path | None = None
        """Who vouches for it, where it speaks TLS, as `localhost`."""
        self._config = folder / f"mosquitto-{self.port}.conf"
        user = ["user root"] if os.geteuid() == 0 else []
        listener = f"listener {self.port} 127.0.0.1"
        self._config.write_text("\n".join([listener, "persistence false", *user, *options]) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        where = "mqtts://localhost" if self.ca_file else "mqtt://127.0.0.1"
        return f"{where}:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [mosquitto(), "-c", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert comes_true(self._answers), "mosquitto does not answer"

    def kill(self) -> None:
        """As when its box loses power: no goodbye to anybody."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(PATIENT_S)
        self._process = None

    def freeze(self) -> None:
        """Still there, but silent."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Clean up, whatever state it is in."""
        if self._process is not None:
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def running_mosquitto(
    folder: Path, options: Sequence[str] = ("allow_anonymous true",)
) -> Iterator[Mosquitto]:
    """A running broker, gone at the end."""
    broker = Mosquitto(folder, options)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@dataclass(frozen=True, slots=True)
class Heard:
    """A message as a subscriber got it."""

    time_s: float
    topic: str
    payload: bytes
    qos: int
    retain: bool
    """Whether the broker had kept it from before the subscription."""

    @property
    def text(self) -> str:
        return self.payload.decode()

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.payload)
        return parsed


class Listener:
    """Subscribes to everything in a thread of its own; returns after a restart of the broker."""

    def __init__(self, broker: Mosquitto, **credentials: str) -> None:
        self.heard: list[Heard] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_disconnect = lambda *_: self._subscribed.clear()
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        if credentials:
            self._client.username_pw_set(credentials["username"], credentials["password"])
        if broker.ca_file:
            self._client.tls_set(str(broker.ca_file))
        self._host = "localhost" if broker.ca_file else "127.0.0.1"
        self._port = broker.port

    def __enter__(self) -> Self:
        self._client.connect(self._host, self._port)
        self._client.loop_start()
        self.wait_subscribed()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_subscribed(self) -> None:
        """Also after the broker was away."""
        assert self._subscribed.wait(PATIENT_S)

    def send(self, topic: str, payload: str | bytes, *, retain: bool = False) -> None:
        """Publish, as another client would; returns once the broker has it."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(PATIENT_S)

    def of(self, kind: str) -> list[Heard]:
        """Messages of the topics that end in `/<kind>`, oldest first."""
        return [heard for heard in self.heard if heard.topic.endswith(f"/{kind}")]

    def texts(self, kind: str) -> list[str]:
        return [heard.text for heard in self.of(kind)]

    def hears(self, claim: Callable[[Self], bool]) -> bool:
        """Whether `claim` holds soon."""
        return comes_true(lambda: claim(self))

    def _on_connect(self, *_: object) -> None:
        self._client.subscribe("#", qos=1)

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        told = (message.topic, bytes(message.payload), message.qos, message.retain)
        self.heard.append(Heard(time.monotonic(), *told))
