"""SIGHUPs that come before anybody can reload: they would end the process."""

import signal


class Hangups:
    """Keeps SIGHUP from ending the process from now on. `came` is whether there was one."""

    def __init__(self) -> None:
        self.came = False
        signal.signal(signal.SIGHUP, self._note)

    def _note(self, *_: object) -> None:
        self.came = True
