"""Telling systemd how far we are; see sd_notify(3)."""

import os
import socket
from contextlib import suppress

import structlog

_PATIENCE_S = 5.0
_log = structlog.get_logger(__name__)


def is_supervised() -> bool:
    """Whether a systemd wants to be told."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(state: str) -> None:
    """Send `READY=1`, `STOPPING=1` or the like; nothing where no systemd asked for it."""
    try:
        _send(state, _PATIENCE_S)
    except OSError as error:
        _log.warning("systemd_not_told", state=state.partition("=")[0], error=str(error))


def notify_news(state: str) -> None:
    """Send `STATUS=...`, `WATCHDOG=1` or the like, which is lost where systemd is too busy."""
    with suppress(OSError):
        _send(state, 0.0)


def _send(state: str, patience_s: float) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # a name in the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(patience_s)
        sender.connect(address)
        sender.sendall(state.encode())
