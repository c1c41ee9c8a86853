"""Telling systemd how far we are."""

import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from adaptive_kv.cli.notify import notify, notify_news


def receive(address: str | bytes) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(address)
    receiver.settimeout(5)
    return receiver


def test_a_state_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with receive(address) as receiver:
        notify("READY=1")
        assert receiver.recv(100) == b"READY=1"


def test_an_abstract_address_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{tmp_path}")
    with receive(f"\0{tmp_path}") as receiver:
        notify("STOPPING=1")
        assert receiver.recv(100) == b"STOPPING=1"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody:
        assert nobody.getsockname() == ""


def test_news_are_lost_where_systemd_is_too_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with receive(address) as receiver:
        for number in range(1000):  # more than a socket keeps
            notify_news(f"STATUS={number}")
        assert receiver.recv(100) == b"STATUS=0"


def test_a_systemd_that_is_gone_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    with capture_logs() as logged:
        notify_news("WATCHDOG=1")
        notify("READY=1")
    assert [(line["event"], line["state"]) for line in logged] == [("systemd_not_told", "READY")]
