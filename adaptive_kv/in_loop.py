"""Reaching a loop of asyncio from another thread, or from a signal's handler."""

import asyncio
from collections.abc import Callable
from contextlib import suppress


def in_loop(call: Callable[[], object]) -> Callable[[], None]:
    """Has the loop that runs now call `call` soon; never blocks, and does nothing once it ended."""
    loop = asyncio.get_running_loop()

    def soon() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(call)

    return soon
