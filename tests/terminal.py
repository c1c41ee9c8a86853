"""A terminal for a process that says more, or less, where it has none."""

import os
import pty
import threading
from typing import Self


class Terminal:
    """`end` is what a process is given, and `text` what it wrote there."""

    def __init__(self) -> None:
        self._shown: list[bytes] = []
        self._ours, self.end = pty.openpty()
        self._reader = threading.Thread(target=self._read)

    @property
    def text(self) -> str:
        """All of it, after `with`."""
        return b"".join(self._shown).decode(errors="replace")

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The process has ended, or whoever else has the end."""
        os.close(self.end)
        self._reader.join()
        os.close(self._ours)

    def _read(self) -> None:
        try:
            while text := os.read(self._ours, 65536):
                self._shown.append(text)
        except OSError:
            return  # nobody has the other end any more
