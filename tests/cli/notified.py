"""systemd's end of the notification socket."""

import queue
import socket
import threading
from pathlib import Path
from typing import Self

NEWS = ("STATUS=", "EXTEND_TIMEOUT_USEC=", "WATCHDOG=")


class Notified:
    """Hears everything, as systemd does. `states` are those that are no mere news."""

    def __init__(self, path: Path) -> None:
        self.news: list[str] = []
        self.states: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen)

    def recv(self, size: int = 100) -> bytes:
        """The next state, waited for."""
        try:
            return self.states.get(timeout=60)[:size]
        except queue.Empty:
            raise TimeoutError("systemd was told no state for a minute") from None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while datagram := self._socket.recv(4096):
            if datagram.decode().startswith(NEWS):
                self.news += datagram.decode().split("\n")
            else:
                self.states.put(datagram)
