"""systemd is told that the worker works only while it does."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from broker import comes_true
from cli.notified import Notified
from cli.test_serve import serving
from statuses import FULL, make_status

from adaptive_kv.cli.supervision import status_text, supervise
from adaptive_kv.engine.status import Health, Status
from adaptive_kv.policy import Load


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not claim():
            await asyncio.sleep(0.001)


def has_pinged(systemd: Notified, times: int) -> bool:
    return systemd.news.count("WATCHDOG=1") == times


def shows(systemd: Notified, running: int) -> bool:
    return f" {running} running" in systemd.news[-1]


class Worker:
    """Publishes what a test says."""

    def __init__(self) -> None:
        self.status = make_status(step=1)

    def publish(self, **changes: object) -> None:
        self.status = make_status(**changes)

    def latest(self) -> Status:
        return self.status


@pytest.fixture
def fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notification socket of a unit whose watchdog is impatient."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "4000")
    return tmp_path / "notify"


@pytest.mark.parametrize("fault", [{"step": 3}, {"step": 9, "health": Health.FAILED}])
async def test_a_worker_that_takes_no_step_gets_no_ping(
    fast: Path, fault: dict[str, object]
) -> None:
    """While this loop goes on, as the text that still changes shows."""
    worker = Worker()
    with Notified(fast) as systemd:
        task = asyncio.create_task(supervise(worker.latest))
        for step in (1, 2, 3):
            worker.publish(step=step)
            await until(partial(has_pinged, systemd, step))
        for running in range(4, 9):
            worker.publish(load=Load(running=running, waiting=0, tokens_per_s=0), **fault)
            await until(partial(shows, systemd, running))
        assert has_pinged(systemd, 3)
        task.cancel()
        await asyncio.wait([task])


async def test_without_systemd_it_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    await supervise(Worker().latest)


def test_the_text_tells_mode_reason_load_and_memory() -> None:
    load = Load(running=3, waiting=1, tokens_per_s=41.2)
    found = status_text(make_status(health=Health.DEGRADED, mode=FULL, pinned=True, load=load))
    assert found.startswith("degraded: full (pinned), 3 running, 1 waiting, 41 tokens/s, ")
    assert found.endswith(" GiB free")
    reason = make_status(mode=FULL, pinned=False, reason_text="roomy")
    assert status_text(reason).startswith("full (roomy), ")


def test_a_service_tells_how_its_start_goes_and_then_that_it_works(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        assert served.notified.recv(100) == b"READY=1"
        assert comes_true(lambda: served.notified.news.count("WATCHDOG=1") >= 3)
        told = list(served.notified.news)
    texts = [line.removeprefix("STATUS=") for line in told if line.startswith("STATUS=")]
    assert texts[0] == "loading weights: 0.0 of 8.0 MiB"
    assert {"checking the model", "measuring speed"} <= set(texts)
    assert told.count("EXTEND_TIMEOUT_USEC=300000000") >= 3
    assert texts[-1].startswith("full (")
    assert " 0 running, 0 waiting, 0 tokens/s, " in texts[-1]
