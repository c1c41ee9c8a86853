"""Telling systemd how far we are; see sd_notify(3)."""

import os
import socket


def notify(state: str) -> None:
    """Send `READY=1`, `STOPPING=1` or the like; nothing where no systemd asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # a name in the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.sendall(state.encode())
