"""Records reach the journal whole, with a field for everything, and nobody waits for it."""

import logging
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from adaptive_kv import journal, log
from adaptive_kv.journal import is_journal
from adaptive_kv.settings import LogSettings

SWITCH = {"from": "full", "to": "int4", "reason": "memory is short", "freed_bytes": 4096}


class Journal:
    """The journal's end of its socket, which understands both ways in which an entry comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(20)

    def entry(self) -> dict[str, str]:
        datagram, descriptors, _, _ = socket.recv_fds(self.socket, 2**20, 1)
        if descriptors:
            with os.fdopen(descriptors[0], "rb") as file:
                file.seek(0)
                datagram = file.read()
        return dict(fields(datagram))

    def entries(self) -> list[dict[str, str]]:
        """All that are there."""
        found = []
        self.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                found.append(self.entry())
        return found


def fields(datagram: bytes) -> Iterator[tuple[str, str]]:
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, is_short, value = line.partition(b"=")
        if not is_short:
            (size,) = struct.unpack("<Q", datagram[:8])
            value, datagram = datagram[8 : 8 + size], datagram[9 + size :]
        yield name.decode(), value.decode()


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """A journal that standard error seems to go to, and logging set up for it."""
    with tempfile.TemporaryDirectory() as folder:
        found = Journal(Path(folder) / "socket")
        monkeypatch.setattr(journal, "JOURNAL_SOCKET", found.path)
        monkeypatch.setattr(log, "is_journal", lambda _: True)
        root = logging.getLogger()
        before, level = root.handlers[:], root.level
        log.configure_logging(LogSettings())
        yield found
        root.handlers[0].close()
        found.socket.close()
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()


def test_a_record_has_a_field_for_all_that_it_tells(listening: Journal) -> None:
    structlog.get_logger("adaptive_kv.test").info("mode_changed", **SWITCH)
    assert listening.entry() == {
        "MESSAGE": 'mode_changed from=full to=int4 reason="memory is short" freed_bytes=4096',
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "adaptive-kv",
        "ADAPTIVE_KV_EVENT": "mode_changed",
        "ADAPTIVE_KV_FROM": "full",
        "ADAPTIVE_KV_TO": "int4",
        "ADAPTIVE_KV_REASON": "memory is short",
        "ADAPTIVE_KV_FREED_BYTES": "4096",
        "ADAPTIVE_KV_LOGGER": "adaptive_kv.test",
    }


def test_many_lines_are_one_entry(listening: Journal) -> None:
    logger = structlog.get_logger("adaptive_kv.test")
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("step_failed", detail="one\nMESSAGE=two")
    logger.warning("next")
    found = listening.entry()
    assert found["MESSAGE"].startswith("step_failed detail=")
    assert found["MESSAGE"].endswith("\nKeyError: 'gone'")
    assert found["ADAPTIVE_KV_DETAIL"] == "one\nMESSAGE=two"
    assert found["PRIORITY"] == "3"
    assert listening.entry()["ADAPTIVE_KV_EVENT"] == "next"


def test_a_library_is_told_like_us(listening: Journal) -> None:
    logging.getLogger("mqtt").warning("lost %s", "the broker")
    found = listening.entry()
    assert (found["MESSAGE"], found["PRIORITY"]) == ("lost the broker", "4")
    assert found["ADAPTIVE_KV_LOGGER"] == "mqtt"


def test_what_no_datagram_takes_arrives_all_the_same(listening: Journal) -> None:
    text = "ä" * 2**20
    structlog.get_logger("adaptive_kv.test").info("large", text=text)
    assert listening.entry()["ADAPTIVE_KV_TEXT"] == text


def test_a_journal_that_is_busy_is_not_waited_for_and_hears_what_it_missed(
    listening: Journal,
) -> None:
    logger = structlog.get_logger("adaptive_kv.test")
    for number in range(1000):
        logger.info("many", number=number)
    taken = listening.entries()
    assert 0 < len(taken) < 1000
    assert [found["ADAPTIVE_KV_NUMBER"] for found in taken] == list(map(str, range(len(taken))))
    logger.info("next")
    logger.info("then")
    first, second = listening.entries()
    assert first["ADAPTIVE_KV_LINES_LOST"] == str(1000 - len(taken))
    assert "lines_lost=" in first["MESSAGE"]
    assert "ADAPTIVE_KV_LINES_LOST" not in second


def test_only_what_the_journal_reads_is_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "JOURNAL_SOCKET", tmp_path)
    with (tmp_path / "one").open("w") as ours, (tmp_path / "two").open("w") as other:
        found = os.fstat(ours.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert is_journal(ours)
        assert not is_journal(other)
        monkeypatch.setattr(journal, "JOURNAL_SOCKET", tmp_path / "absent")
        assert not is_journal(ours)
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not is_journal(ours)
