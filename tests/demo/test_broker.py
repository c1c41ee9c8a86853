"""The demo brings a broker of its own, whatever is installed."""

import shutil
from pathlib import Path

import pytest
from mqtt.publishing import publishing

from adaptive_kv.demo import processes


def test_without_mosquitto_a_broker_in_python_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours speaks MQTT 3.1.1 to it, and everything arrives."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with processes.broker(tmp_path) as url:
        assert url is not None
        with publishing(url) as node:
            assert node.connects()
            node.append(1, 2, 3)
            assert node.has_told_all()


def test_without_any_broker_there_is_no_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(processes, "find_spec", lambda _: None)
    with processes.broker(tmp_path) as url:
        assert url is None
