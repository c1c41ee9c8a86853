"""Log records as entries of systemd's journal, with a field for everything that a record tells.

The protocol is the one of systemd's "Journal Native Protocol" page: datagrams of `KEY=value` lines,
lengths instead of `=` where a value has lines of its own, and a sealed file in memory where an
entry is too large for a datagram.
"""

import array
import errno
import fcntl
import json
import logging
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import structlog

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
_PREFIX = "ADAPTIVE_KV_"
_MAX_NAME_CHARS = 64
_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_NOT_SHOWN = ("timestamp", "level", "logger", "event", "exception", "stack")
"""Keys that MESSAGE leaves out, or tells in its own way."""
_as_text = structlog.processors.LogfmtRenderer(bool_as_flag=False)


def is_journal(stream: TextIO) -> bool:
    """Whether what is written there goes to the journal; see JOURNAL_STREAM in systemd.exec(5)."""
    with suppress(OSError):  # one that was captured has no descriptor
        found = os.fstat(stream.fileno())
        is_meant = os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
        return is_meant and JOURNAL_SOCKET.exists()
    return False


class JournalHandler(logging.Handler):
    """Sends records, which its formatter makes JSON of, to the journal; never waits for it.

    What a busy journal does not take is lost, and counted in the next entry that it takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._path = str(JOURNAL_SOCKET)
        self._num_lost = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            found: dict[str, Any] = json.loads(self.format(record))
            if self._num_lost:
                found["lines_lost"] = self._num_lost
            self._send(entry(found))
        except OSError:
            self._num_lost += 1
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)
        else:
            self._num_lost = 0

    def close(self) -> None:
        """Let go of the journal."""
        self._socket.close()
        super().close()

    def _send(self, datagram: bytes) -> None:
        try:
            self._socket.sendto(datagram, self._path)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            self._send_in_file(datagram)

    def _send_in_file(self, content: bytes) -> None:
        with open(os.memfd_create("log", os.MFD_ALLOW_SEALING), "wb") as file:  # noqa: PTH123
            file.write(content)
            file.flush()
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            rights = array.array("i", [file.fileno()])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            self._socket.sendmsg([], ancillary, 0, self._path)


def entry(record: Mapping[str, Any]) -> bytes:
    """The datagram for a record of the JSON log."""
    return b"".join(_field(name, value) for name, value in _fields(record))


def _fields(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "MESSAGE", _message(record)
    yield "PRIORITY", str(_PRIORITIES.get(record.get("level", ""), 6))
    yield "SYSLOG_IDENTIFIER", "adaptive-kv"
    for key, value in record.items():
        if key not in {"timestamp", "level"} and value is not None:
            name = re.sub(r"[^A-Z0-9_]", "_", _PREFIX + key.upper())[:_MAX_NAME_CHARS]
            yield name, value if isinstance(value, str) else json.dumps(value)


def _message(record: Mapping[str, Any]) -> str:
    """What `journalctl` shows: the event, what belongs to it, and where it was raised."""
    shown = {key: value for key, value in record.items() if key not in _NOT_SHOWN}
    told = " ".join(part for part in (record["event"], _as_text(None, "", shown)) if part)
    return "\n".join([told, *(record[key] for key in ("exception", "stack") if record.get(key))])


def _field(name: str, value: str) -> bytes:
    text = value.encode("utf-8", "backslashreplace")
    if b"\n" not in text:
        return b"%s=%s\n" % (name.encode(), text)
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(text)), text)
