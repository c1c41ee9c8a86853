"""Every SIGHUP is told once, whenever it comes."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from adaptive_kv.cli.hangups import Hangups


@pytest.fixture
def hangups() -> Iterator[Hangups]:
    before = signal.getsignal(signal.SIGHUP)
    yield Hangups()
    signal.signal(signal.SIGHUP, before)


def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


async def test_one_that_came_before_is_told_at_once_and_never_again(hangups: Hangups) -> None:
    told: list[str] = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, lambda: None)
    hang_up()  # the loop hears of this one too, as it has handlers of its own
    hangups.listen(lambda: told.append("hung up"))
    await asyncio.sleep(0.1)
    assert told == ["hung up"]


async def test_each_one_after_it_is_told(hangups: Hangups) -> None:
    told: list[str] = []
    hangups.listen(lambda: told.append("hung up"))
    for number in range(3):
        assert len(told) == number
        hang_up()
        await asyncio.sleep(0.05)
    assert len(told) == 3


def test_nobody_minds_one_that_comes_when_the_loop_has_ended(hangups: Hangups) -> None:
    async def listen() -> None:
        hangups.listen(lambda: None)

    asyncio.run(listen())
    hang_up()
    assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
