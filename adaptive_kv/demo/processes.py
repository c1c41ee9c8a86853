"""The processes of the demonstration: service, broker and squeeze, each ended by its own pid."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from adaptive_kv.demo.room import MIB, Room
from adaptive_kv.errors import AdaptiveKVError

LADDER = ("full", "int8", "int4", "window:512+int4")
NODE = "demo"
_END_S = 10.0
_BROKER_S = 5.0
_SETTLE_S = 15.0
_SETTLED_BYTES = 32 * MIB
_TOML = """\
[model]
device = "{device}"
[server]
port = 0
max_wait_s = 120
drain_timeout_s = 2
[memory]
floor = {floor_bytes}
[cache]
ladder = {ladder}
slab = "2MiB"
[policy]
min_dwell_s = 1
options = {{ hold_s = 3, horizon_s = 0.5 }}
[mqtt]
node = "{node}"
{mqtt}
[log]
format = "json"
"""


class ServiceDiedError(AdaptiveKVError):
    """The service ended or did not start; carries its last words."""

    def __init__(self, what: str, last_words: str) -> None:
        super().__init__(f"the service {what}:\n{last_words}")


@dataclass(frozen=True, slots=True)
class Holding:
    """What the squeeze told last, in bytes and monotonic seconds."""

    held_bytes: int
    left_bytes: int
    time_s: float


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, which is over when this is."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


class Service:
    """The running service; its log is read all the time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.last_words: deque[str] = deque(maxlen=20)
        self._port: int | None = None
        self._is_known = threading.Event()
        threading.Thread(target=self._read_log, name="service-log", daemon=True).start()

    def port(self, timeout_s: float) -> int:
        """Where it listens, as soon as it does. Raises `ServiceDiedError`."""
        self._is_known.wait(timeout_s)
        if self._port is None:
            what = "did not start" if self.is_alive else f"ended with {self.process.returncode}"
            raise ServiceDiedError(what, "".join(self.last_words))
        return self._port

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with suppress(ValueError):  # closed while reading: it is over
            for line in self.process.stderr:
                self.last_words.append(line)
                found = re.search(r"http://127\.0\.0\.1:([0-9]+)", line)
                if found and '"listening"' in line:
                    self._port = int(found[1])
                    self._is_known.set()
        self._is_known.set()


def demo_config(device: str, room: Room, mqtt_url: str | None) -> str:
    """What the demonstration's service is configured with."""
    return _TOML.format(
        device=device.partition(":")[0],
        floor_bytes=room.floor_bytes,
        ladder=json.dumps(LADDER),
        node=NODE,
        mqtt=f'url = "{mqtt_url}"' if mqtt_url else "",
    )


@contextmanager
def serving(folder: Path, text: str) -> Iterator[Service]:
    """`adaptive-kv serve` with this configuration, as anyone would start it."""
    config = folder / "adaptive-kv.toml"
    config.write_text(text, "utf-8")
    ours = {name: value for name, value in os.environ.items() if "ADAPTIVE_KV" not in name}
    command = [sys.executable, "-m", "adaptive_kv", "serve", "--config", str(config)]
    process = _started(command, stderr=subprocess.PIPE, env=ours | {"HF_HUB_OFFLINE": "1"})
    with ended(process):
        yield Service(process)


@contextmanager
def broker(folder: Path) -> Iterator[str | None]:
    """The address of a broker of our own; None where there is neither mosquitto nor amqtt."""
    port = _free_port()
    command = _mosquitto(folder, port) or _amqtt(folder, port)
    if command is None:
        yield None
        return
    process = _started(command, stderr=subprocess.DEVNULL)
    with ended(process):
        yield f"mqtt://127.0.0.1:{port}" if _answers(port) else None


def _mosquitto(folder: Path, port: int) -> list[str] | None:
    found = shutil.which(
        "mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin"
    )
    if found is None:
        return None
    config = folder / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n{user}", "utf-8"
    )
    return [found, "-c", str(config)]


def _amqtt(folder: Path, port: int) -> list[str] | None:
    """The broker that `pip install adaptive-kv[demo]` brings; speaks MQTT 3.1.1."""
    if find_spec("amqtt") is None:
        return None
    config = folder / "amqtt.yaml"
    listener = {"type": "tcp", "bind": f"127.0.0.1:{port}"}
    anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    document = {"listeners": {"default": listener}, "plugins": anonymous}
    config.write_text(json.dumps(document), "utf-8")  # JSON is YAML
    return [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(config)]


class Squeezer:
    """Our end of the squeeze."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.latest = Holding(0, 0, time.monotonic())
        threading.Thread(target=self._read, name="squeeze", daemon=True).start()

    def leave(self, leave_bytes: int, cache_bytes: int) -> None:
        """Order that so much is left to the service, cache included."""
        order = {"leave_bytes": leave_bytes, "cache_bytes": cache_bytes}
        _write_line(self.process.stdin, json.dumps(order))

    def settle(self, leave_bytes: int) -> None:
        """Leave so much to a service without a cache; returns when that is so, or seems not to be.

        A machine whose other processes never hold still is squeezed all the same.
        """
        self.leave(leave_bytes, 0)
        until_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < until_s and self.process.poll() is None:
            if abs(self.latest.left_bytes - leave_bytes) < _SETTLED_BYTES:
                return
            time.sleep(0.1)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with suppress(ValueError):  # closed while reading: it is over
            for line in self.process.stdout:
                told = json.loads(line)
                self.latest = Holding(told["held_bytes"], told["left_bytes"], told["time_s"])


@contextmanager
def squeezing(pid: int, device: str, room: Room) -> Iterator[Squeezer]:
    """The second process, which holds nothing yet."""
    command = [sys.executable, "-m", "adaptive_kv.demo.squeeze", "--device", device]
    command += ["--pid", str(pid)]
    command += ["--floor", str(room.floor_bytes), "--most", str(room.most_bytes)]
    process = _started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with ended(process):
        yield Squeezer(process)


def _started(
    command: list[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - the commands are our own
        command, stdin=stdin, stdout=stdout, stderr=stderr, env=env, text=True
    )


def _write_line(pipe: IO[str] | None, line: str) -> None:
    assert pipe is not None
    try:
        pipe.write(line + "\n")
        pipe.flush()
    except BrokenPipeError:
        raise AdaptiveKVError("the squeeze has ended by itself") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(port: int) -> bool:
    until_s = time.monotonic() + _BROKER_S
    while time.monotonic() < until_s:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        time.sleep(0.05)
    return False
