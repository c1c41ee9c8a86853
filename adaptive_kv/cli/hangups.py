"""SIGHUPs, from the start on: before anybody can reload one would end the process."""

import signal
from collections.abc import Callable

from adaptive_kv.in_loop import in_loop


class Hangups:
    """Keeps SIGHUP from ending the process from now on; each is told to whoever listens, once."""

    def __init__(self) -> None:
        self._has_come = False
        self._tell: Callable[[], None] | None = None
        signal.signal(signal.SIGHUP, self._note)

    def listen(self, told: Callable[[], None]) -> None:
        """Have the running loop call `told` at every SIGHUP, and at once if one came before."""
        self._tell = in_loop(told)
        if self._has_come:
            told()

    def _note(self, *_: object) -> None:
        if self._tell is None:
            self._has_come = True
        else:
            self._tell()
