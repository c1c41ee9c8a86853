"""`watch` shows boxes from what a real broker has, and what happens to them as it happens."""

import json
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from broker import Listener, Mosquitto, comes_true, free_port, running_mosquitto
from cli.command import COMMAND, clean_environment
from mqtt.publishing import Node, publishing
from mqtt.secured import password, secured_mosquitto
from statuses import EVERY_EVENT, INT4, make_status

from adaptive_kv.documents import state_document
from adaptive_kv.engine.status import Health

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with running_mosquitto(tmp_path) as running:
        yield running


class Watching:
    """The command in a process of its own, and all that it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process = process
        self._output = output
        self._seen = b""

    def shows(self, *words: str) -> bool:
        """Whether all of it is there soon."""
        return comes_true(lambda: all(word in self._text() for word in words))

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        assert comes_true(lambda: self._text() is not None and self.process.poll() is not None)
        return self.process.returncode

    def _text(self) -> str:
        with suppress(OSError):  # nothing new, or the terminal is gone
            self._seen += os.read(self._output, 65536)
        return self._seen.decode(errors="replace")


@contextmanager
def watching(folder: Path, *arguments: str, on_terminal: bool) -> Iterator[Watching]:
    environment = clean_environment(folder, {"TERM": "xterm-256color"})
    ours, theirs = pty.openpty() if on_terminal else os.pipe()
    if on_terminal:
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
        del environment["COLUMNS"]
    os.set_blocking(ours, False)
    process = subprocess.Popen([COMMAND, "watch", *arguments], stdout=theirs, env=environment)
    os.close(theirs)
    try:
        yield Watching(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def squeeze(node: Node) -> None:
    node.change(mode=INT4, health=Health.DEGRADED, reason_text="free 3 < 4 [bold]\x1b[2J")
    node.events.append(EVERY_EVENT[0])


def test_once_shows_what_the_broker_has_kept(adaptive_kv: Run, broker: Mosquitto) -> None:
    with publishing(broker.url) as node:
        squeeze(node)
        assert node.has_told_all()
        done = adaptive_kv("watch", "--once", "--mqtt-url", broker.url, COLUMNS="140")
    assert done.returncode == 0, done.stderr
    assert "1 box, 1 in trouble" in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if "░" in line]
    assert row.split()[:3] == ["edge-07", "degraded", "int4"]
    assert "free 3 < 4 [bold]?[2J" in row, "nothing that a terminal would obey"
    assert "\x1b" not in done.stdout


def test_json_is_for_programs(adaptive_kv: Run, broker: Mosquitto) -> None:
    with publishing(broker.url) as node:
        assert node.connects()
        assert node.publisher.status.is_connected
        done = adaptive_kv("watch", "--json", "--mqtt-url", broker.url, "--node", "edge-07")
    (box,) = json.loads(done.stdout)["boxes"]
    assert (box["node"], box["availability"]) == ("edge-07", "online")
    assert box["state"]["mode"] == "full"


def test_a_box_that_was_not_asked_for_is_not_shown(adaptive_kv: Run, broker: Mosquitto) -> None:
    with publishing(broker.url) as node:
        assert node.connects()
        done = adaptive_kv("watch", "--json", "--mqtt-url", broker.url, "--node", "edge-08")
    assert json.loads(done.stdout) == {"boxes": []}


def test_without_a_terminal_everything_that_happens_is_a_line(
    tmp_path: Path, broker: Mosquitto
) -> None:
    arguments = ("--mqtt-url", broker.url)
    with watching(tmp_path, *arguments, on_terminal=False) as watch:
        with publishing(broker.url) as node:
            assert watch.shows(" edge-07 online\n", " edge-07 ok  full, room to spare\n")
            squeeze(node)
            assert watch.shows(
                " edge-07 degraded  int4, free 3 < 4 [bold]?[2J\n",
                " edge-07 mode_changed  full → int4  pressure  (3 sequences, 0.0 MiB freed, ",
            )
        assert watch.shows(" edge-07 offline\n")
        assert watch.end() == 0


def test_lines_end_with_whoever_reads_them(tmp_path: Path, broker: Mosquitto) -> None:
    """As in `adaptive-kv watch | head -1`; a broker that is away is told elsewhere, and once."""
    broker.kill()
    environment = clean_environment(tmp_path)
    command = [COMMAND, "watch", "--mqtt-url", broker.url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline().startswith("broker away: ")
        broker.start()
        with publishing(broker.url) as node:
            assert "edge-07" in process.stdout.readline()
            process.stdout.close()
            squeeze(node)
            assert comes_true(lambda: process.poll() is not None)
        assert process.returncode == 0
        assert process.stderr.read() == ""


def test_a_terminal_shows_it_live_through_an_outage(tmp_path: Path, broker: Mosquitto) -> None:
    with (
        publishing(broker.url) as node,
        watching(tmp_path, "--mqtt-url", broker.url, on_terminal=True) as watch,
    ):
        assert watch.shows("edge-07", "room to spare", "demo on cpu")
        squeeze(node)
        assert watch.shows("1 in trouble", "degraded", "mode_changed", "full → int4")
        broker.kill()
        assert watch.shows("broker away")
        broker.start()
        node.change(mode=INT4, health=Health.DRAINING)
        assert watch.shows("draining")
        assert watch.end() == 0


def test_dashboards_may_watch_by_the_example_rules(adaptive_kv: Run, tmp_path: Path) -> None:
    with secured_mosquitto(tmp_path) as broker:
        login = {"ADAPTIVE_KV_MQTT__USERNAME": "viewer"}
        login["ADAPTIVE_KV_MQTT__PASSWORD"] = password("viewer")
        login["ADAPTIVE_KV_MQTT__CA_FILE"] = str(broker.ca_file)
        done = adaptive_kv("watch", "--json", "--mqtt-url", broker.url, **login)
        assert json.loads(done.stdout) == {"boxes": []}
        login["ADAPTIVE_KV_MQTT__PASSWORD"] = "guessed wrong"
        done = adaptive_kv("watch", "--once", "--mqtt-url", broker.url, **login)
    assert done.returncode == 1
    assert "ot authorized" in done.stderr
    assert "guessed" not in done.stderr


def test_a_broker_that_is_not_there_is_a_failure(adaptive_kv: Run) -> None:
    done = adaptive_kv("watch", "--once", "--mqtt-url", f"mqtt://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "give --mqtt-url"),
        (["--mqtt-url", "mqtt://localhost", "--node", "a/#"], "no name for a node"),
        (["--mqtt-url", "http://localhost"], "not a broker's address"),
    ],
)
def test_what_cannot_be_watched_is_bad_configuration(
    adaptive_kv: Run, arguments: list[str], why: str
) -> None:
    done = adaptive_kv("watch", *arguments)
    assert done.returncode == 78
    assert why in done.stderr


def test_a_large_fleet_is_shown_whole(adaptive_kv: Run, broker: Mosquitto) -> None:
    """All that is kept comes at once."""
    state = state_document(
        make_status(), node="box", boot_id="a", seq=1, time=0.0, dropped_events=0
    ).to_json()
    with Listener(broker) as listener:
        for number in range(400):
            listener.send(f"adaptive-kv/v1/box-{number}/state", state, retain=True)
    done = adaptive_kv("watch", "--json", "--mqtt-url", broker.url)
    boxes = json.loads(done.stdout)["boxes"]
    assert len(boxes) == 400
    shown = adaptive_kv("watch", "--once", "--mqtt-url", broker.url, COLUMNS="140").stdout
    assert all(f" box-{number} " in shown for number in range(400))
    assert all(box["state"] for box in boxes)
