"""Telling systemd how far we are."""

import socket
from pathlib import Path

import pytest

from adaptive_kv.cli.notify import notify


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
