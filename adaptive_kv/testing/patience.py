"""Gives up on code that does not come to an end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TookTooLong(BaseException):
    """Patience was at its end; no `Exception`, so that it is not caught as one."""


@contextmanager
def patience(limit_s: float) -> Iterator[None]:
    """Raise `TookTooLong` in the body after `limit_s`. In the main thread only: elsewhere wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise TookTooLong
