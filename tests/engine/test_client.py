"""The client delivers every reply to its request, and cancels what nobody waits for."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

import pytest
from server.scripted import (
    INT4,
    PATIENT_S,
    PIECES,
    TEXT,
    ScriptedWorker,
    make_status,
)

from adaptive_kv.engine.client import EngineClient
from adaptive_kv.engine.mailbox import (
    BeginDrain,
    Cancel,
    Delta,
    Finished,
    Mailbox,
    PinMode,
    Request,
    UnpinMode,
)
from adaptive_kv.engine.status import Health
from adaptive_kv.errors import Refusal, RequestError
from adaptive_kv.events import EventLog, RequestRejected
from adaptive_kv.policy import Load

GONE = Refusal("the worker is gone", 503)


def asking(prompt: str, id_: str = "a") -> Request:
    return Request(id=id_, prompt_ids=tuple(prompt.encode()))


@contextmanager
def working(max_in_flight: int = 4) -> Iterator[tuple[EngineClient, ScriptedWorker]]:
    mailbox = Mailbox(make_status())
    worker = ScriptedWorker(mailbox)
    worker.start()
    try:
        yield EngineClient(mailbox, max_in_flight=max_in_flight), worker
    finally:
        worker.stop.set()
        worker.join(PATIENT_S)


async def text_of(client: EngineClient, request: Request) -> str:
    replies = [reply async for reply in client.generate(request)]
    assert isinstance(replies[-1], Finished)
    return "".join(reply.text for reply in replies if isinstance(reply, Delta))


async def test_replies_come_in_order_and_end_with_finished() -> None:
    with working() as (client, worker):
        assert await text_of(client, asking("x")) == TEXT
        assert client.num_in_flight == 0
        assert worker.cancelled.empty()


async def test_requests_at_the_same_time_do_not_mix() -> None:
    with working(max_in_flight=100) as (client, _):
        texts = [text_of(client, asking("x", f"{number}")) for number in range(100)]
        assert await asyncio.gather(*texts) == [TEXT] * 100


async def test_replies_of_many_requests_are_told_apart_by_id() -> None:
    with working() as (client, _):
        replies = [reply async for reply in client.generate(asking("x"), asking("x", "b"))]
    assert sorted(reply.request_id for reply in replies) == ["a"] * 4 + ["b"] * 4


async def test_closing_early_cancels_what_is_unfinished() -> None:
    with working() as (client, worker):
        async with aclosing(client.generate(asking("HANG"), asking("x", "b"))) as replies:
            while not isinstance(await anext(replies), Finished):
                pass
        assert worker.cancelled.get(timeout=PATIENT_S) == "a"
        assert worker.cancelled.empty()
        assert client.num_in_flight == 0
        assert client.num_by_outcome == {"completed": 1, "cancelled": 1, "failed": 0}


async def test_cancelling_the_task_cancels_the_request() -> None:
    with working() as (client, worker):
        task = asyncio.create_task(text_of(client, asking("HANG")))
        await asyncio.to_thread(worker.requests.get, timeout=PATIENT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert worker.cancelled.get(timeout=PATIENT_S) == "a"


async def test_a_failure_is_raised_and_the_others_are_cancelled() -> None:
    with working() as (client, worker):
        with pytest.raises(RequestError) as caught:
            async for _ in client.generate(asking("FAIL"), asking("HANG", "b")):
                pass
        assert caught.value.refusal.retry_after_s == 7.0
        assert worker.cancelled.get(timeout=PATIENT_S) == "b"
        assert client.num_by_outcome == {"failed": 1, "cancelled": 1}


async def test_every_token_was_waited_for_once() -> None:
    """The first of a request, and the others from one to the next."""
    with working() as (client, _):
        await asyncio.gather(*(text_of(client, asking("x", id_)) for id_ in "ab"))
    first, following = client.waits.first.spread(), client.waits.next.spread()
    assert sum(first.counts) == 2
    assert sum(following.counts) == 2 * (len(PIECES) - 1)
    assert min(first.sum_s, following.sum_s) > 0


async def test_a_request_that_ended_is_not_waited_for() -> None:
    """Whether it was answered or cancelled."""
    with working() as (client, _):
        async with aclosing(client.generate(asking("HANG"), asking("x", "b"))) as replies:
            while not isinstance(await anext(replies), Finished):
                pass
        assert client.waits.num_waiting == 0


async def test_beyond_its_places_a_request_is_refused_and_recorded() -> None:
    mailbox, events = Mailbox(make_status()), EventLog()
    client = EngineClient(mailbox, max_in_flight=1, events=events)
    with pytest.raises(RequestError) as caught:
        await anext(client.generate(asking("x"), asking("x", "b")))
    assert caught.value.refusal.status == 429
    assert caught.value.refusal.retry_after_s is not None
    assert mailbox.collect() == []
    (record,), _ = events.since(0)
    assert record.event == RequestRejected(request="a", code="overloaded")


@pytest.mark.parametrize("health", [Health.DRAINING, Health.FAILED])
async def test_what_does_not_work_takes_nothing(health: Health) -> None:
    mailbox = Mailbox(make_status(health=health))
    client = EngineClient(mailbox, max_in_flight=1)
    with pytest.raises(RequestError) as caught:
        await anext(client.generate(asking("x")))
    assert caught.value.refusal.status == 503
    assert mailbox.collect() == []


async def test_a_lost_worker_fails_what_is_in_flight() -> None:
    client = EngineClient(Mailbox(make_status()), max_in_flight=1)
    task = asyncio.create_task(text_of(client, asking("x")))
    while client.num_in_flight == 0:
        await asyncio.sleep(0)
    client.fail_all(GONE)
    with pytest.raises(RequestError, match="the worker is gone"):
        await task
    assert client.num_in_flight == 0


def test_replies_after_the_loop_has_closed_hurt_nobody() -> None:
    mailbox = Mailbox(make_status())
    client = EngineClient(mailbox, max_in_flight=1)

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await text_of(client, asking("x"))

    asyncio.run(leave())
    mailbox.reply([Delta(request_id="a", text="late", token_ids=(1,))])
    assert mailbox.collect() == [asking("x"), Cancel("a")]


def test_pin_unpin_and_drain_are_mail() -> None:
    mailbox = Mailbox(make_status())
    client = EngineClient(mailbox, max_in_flight=1)
    client.pin(INT4)
    client.unpin()
    client.drain()
    assert mailbox.collect() == [PinMode(INT4), UnpinMode(), BeginDrain()]


@pytest.mark.parametrize(
    ("age_s", "running", "health", "is_alive"),
    [
        (0.0, 1, Health.OK, True),
        (59.0, 1, Health.DEGRADED, True),
        (61.0, 1, Health.OK, False),
        (1e9, 0, Health.OK, True),
        (0.0, 0, Health.FAILED, False),
    ],
)
def test_alive_is_progress_or_nothing_to_do(
    age_s: float, running: int, health: Health, is_alive: bool
) -> None:
    load = Load(running=running, waiting=0, tokens_per_s=0.0)
    mailbox = Mailbox(make_status(time_s=0.0, health=health, load=load))
    client = EngineClient(mailbox, max_in_flight=1, clock=lambda: age_s)
    assert client.is_alive() is is_alive
