"""Whoever waits sees how far it is: on a terminal, in the log, and as systemd's status."""

import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors.torch
import torch
from cli.command import COMMAND, clean_environment
from structlog.testing import capture_logs
from terminal import Terminal

from adaptive_kv.cli.progress import Pace, describe, shown_progress
from adaptive_kv.engine.loading import embedded_model
from adaptive_kv.progress import Progress, Unit

MIB = 2**20

GENERATE = [COMMAND, "generate", "def main", "--raw", "--device", "cpu", "--max-tokens", "4"]


@pytest.mark.parametrize(
    ("done", "total", "unit", "left_s", "text"),
    [
        (0, None, "seconds", None, "loading"),
        (1.5 * 2**30, 4 * 2**30, "bytes", 200.0, "loading: 1.5 of 4.0 GiB, 3 min left"),
        (1024, 2048, "bytes", 0.2, "loading: 1.0 of 2.0 KiB"),
        (32, 2048, "tokens", 45.2, "loading: 32 of 2048 tokens, 45 s left"),
        (0.25, 1.0, "seconds", 89.0, "loading: 25 %, 89 s left"),
        (0, 0, "bytes", None, "loading"),
    ],
)
def test_sizes_and_the_time_left_are_told(
    done: float, total: float | None, unit: Unit, left_s: float | None, text: str
) -> None:
    assert describe(Progress(task="loading", done=done, total=total, unit=unit), left_s) == text


def test_the_time_left_follows_from_how_the_task_went() -> None:
    pace = Pace()

    def left_s(task: str, done: float, now_s: float, total: float | None = 10) -> float | None:
        return pace.left_s(Progress(task=task, done=done, total=total), now_s)

    assert left_s("load", 2, 100.0) is None, "nothing was done yet"
    assert left_s("load", 4, 101.0) == 3.0
    assert left_s("load", 10, 104.0) == 0.0
    assert left_s("check", 1, 200.0) is None, "another task has another pace"
    assert left_s("check", 2, 201.0, total=None) is None


def test_what_takes_long_is_a_line_of_the_log_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what does not is none."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    with capture_logs() as logged, shown_progress() as tell:
        for second in range(32):
            now_s[0] = 100.0 + second
            tell(Progress(task="calibrating", done=second, total=100, unit="tokens"))
        for second in range(4):
            now_s[0] = 200.0 + second
            tell(Progress(task="measuring speed", done=second, total=4))
    assert [line["text"] for line in logged] == [
        "calibrating: 5 of 100 tokens, 2 min left",
        "calibrating: 15 of 100 tokens, 85 s left",
        "calibrating: 25 of 100 tokens, 75 s left",
    ]


def on_terminal(command: list[str], home: Path) -> tuple[str, str]:
    """What a command writes to a pipe on its standard output, and to a terminal on the other."""
    environment = clean_environment(home, {"XDG_CACHE_HOME": str(home / "cache"), "TERM": "xterm"})
    with Terminal() as terminal:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=terminal.end,
            text=True,
            check=False,
            env=environment,
            cwd=home,
        )
    assert done.returncode == 0, terminal.text
    return done.stdout, terminal.text


def test_a_terminal_shows_the_tasks_of_a_start_and_then_the_answer_alone(tmp_path: Path) -> None:
    """A model is calibrated when it is first seen, which is no longer done in silence."""
    answer, shown = on_terminal(GENERATE, tmp_path)
    assert answer.strip()
    for text in ("checking the model", "calibrating: ", " of 1938 tokens"):
        assert text in shown
    assert shown.rstrip().endswith("\x1b[2K"), "the line was wiped"


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as a download asks for, with one model, in no hurry."""

    protocol_version = "HTTP/1.1"
    commit = "a" * 40
    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self._answer(is_whole=False)

    def do_GET(self) -> None:
        self._answer(is_whole=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, is_whole: bool) -> None:
        name = self.path.partition("?")[0].rsplit("/", 1)[-1]
        if "/resolve/" in self.path and name in self.files:
            content = self.files[name]
            tag = hashlib.sha256(content).hexdigest()
            self._send(200, content, is_whole, {"ETag": f'"{tag}"', "X-Repo-Commit": self.commit})
        elif "/resolve/" in self.path or "/tree/" in self.path:
            self._send(404, b"", is_whole, {"X-Error-Code": "EntryNotFound"})
        elif self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            found = {"id": "acme/tiny", "sha": self.commit, "siblings": siblings}
            self._send(200, json.dumps(found).encode(), is_whole, {})
        else:
            self._send(404, b"", is_whole, {})

    def _send(self, status: int, body: bytes, is_whole: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(body) * is_whole, 5 * MIB):
            self.wfile.write(body[start : start + 5 * MIB])
            time.sleep(0.1)


@contextmanager
def hub() -> Iterator[str]:
    """With the embedded model, made large enough for a download to be told of."""
    Hub.files = {file.name: file.read_bytes() for file in embedded_model().iterdir()}
    weights = safetensors.torch.load(Hub.files["model.safetensors"])
    weights["more"] = torch.zeros(25 * MIB, dtype=torch.uint8)
    Hub.files["model.safetensors"] = safetensors.torch.save(weights, {"format": "pt"})
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_download_is_shown_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        answer, shown = on_terminal([*GENERATE, "--model", "acme/tiny"], tmp_path)
    assert answer.strip()
    assert "downloading: " in shown
    assert " of 33.0 MiB" in shown
