"""The asyncio side of the mailbox: posts requests, and brings each one its replies."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

from adaptive_kv.engine.mailbox import (
    BeginDrain,
    Cancel,
    Delta,
    Failed,
    Finished,
    Mailbox,
    PinMode,
    Reply,
    Request,
    UnpinMode,
)
from adaptive_kv.engine.status import Health, Status
from adaptive_kv.engine.waits import Waits
from adaptive_kv.errors import Refusal, RequestError
from adaptive_kv.events import EventLog, RequestRejected
from adaptive_kv.policy import CacheMode


class EngineClient:
    """What a front talks to. All of it belongs to one event loop, the one that first generates.

    At most `max_in_flight` requests are with the worker at a time. `num_by_outcome` counts
    requests that ended as `completed`, `failed`, `rejected` or `cancelled`; `waits` says how long
    their tokens took.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        *,
        max_in_flight: int,
        events: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_in_flight = max_in_flight
        self.num_by_outcome: Counter[str] = Counter()
        self.waits = Waits()
        self._mailbox = mailbox
        self._events = events
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._replies: dict[str, asyncio.Queue[Reply]] = {}
        mailbox.on_replies(self._deliver)

    @property
    def status(self) -> Status:
        """The latest truth that the worker published."""
        return self._mailbox.status

    @property
    def num_in_flight(self) -> int:
        """How many requests wait for a reply."""
        return len(self._replies)

    def is_alive(self, stall_s: float = 60.0) -> bool:
        """Whether the worker published within `stall_s`, or has nothing to do."""
        status = self.status
        if status.health is Health.FAILED:
            return False
        is_idle = not (self._replies or status.load.running or status.load.waiting)
        return is_idle or self._clock() - status.time_s < stall_s

    def why_not_ready(self) -> Refusal | None:
        """Why a request would be refused now whatever it asks; None where it would be taken."""
        status = self.status
        if status.health is Health.DRAINING:
            return _unavailable("the service is shutting down; ask another one", "draining")
        if status.health is Health.FAILED:
            return _unavailable("the engine has failed; it is being restarted", "failed")
        if not status.is_ready:
            return _unavailable("not ready to take requests; try again soon", "not_ready")
        return None

    async def generate(self, *requests: Request) -> AsyncGenerator[Delta | Finished]:
        """Replies of all `requests` as they come, until each has finished.

        Raises `RequestError` when they are not taken, or when one of them fails; the others are
        cancelled then. Closing the generator early, or cancelling its task, cancels them all.
        """
        self._admit(requests)
        self._loop = asyncio.get_running_loop()
        replies: asyncio.Queue[Reply] = asyncio.Queue()
        unfinished = {request.id for request in requests}
        self._replies |= dict.fromkeys(unfinished, replies)
        outcome = "cancelled"
        try:
            for request in requests:
                self.waits.begin(request.id, self._clock())
                self._mailbox.post(request)
            while unfinished:
                reply = await replies.get()
                if not isinstance(reply, Delta):
                    unfinished.discard(reply.request_id)
                if isinstance(reply, Failed):
                    outcome = "failed"
                    raise RequestError(reply.refusal)
                if isinstance(reply, Finished):
                    self.num_by_outcome["completed"] += 1
                yield reply
        finally:
            self._forget(requests, unfinished, outcome)

    def pin(self, mode: CacheMode) -> None:
        """Hold `mode` whatever the policy says."""
        self._mailbox.post(PinMode(mode))

    def unpin(self) -> None:
        """Return to the policy."""
        self._mailbox.post(UnpinMode())

    async def until_pinned(self, mode: CacheMode | None, within_s: float) -> None:
        """Wait until the worker holds `mode`, or none; the guard may hold another for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not self._is_pinned(mode):
                    await asyncio.sleep(0.01)

    def _is_pinned(self, mode: CacheMode | None) -> bool:
        return self.status.pinned == (mode is not None) and mode in {None, self.status.mode}

    def drain(self) -> None:
        """Let the worker take no more requests."""
        self._mailbox.post(BeginDrain())

    def fail_all(self, refusal: Refusal) -> None:
        """Fail what is in flight: the worker is gone and will not answer. Loop's thread only."""
        self._dispatch([Failed(request_id=id_, refusal=refusal) for id_ in self._replies])

    def _admit(self, requests: Sequence[Request]) -> None:
        refusal = self.why_not_ready()
        if refusal is None and self.num_in_flight + len(requests) > self.max_in_flight:
            message = f"all {self.max_in_flight} places are taken; try again soon"
            refusal = Refusal(message, 429, "rate_limit_error", None, "overloaded", 1.0)
        if refusal is None:
            return
        self.num_by_outcome["rejected"] += len(requests)
        if self._events is not None:
            assert refusal.code is not None
            self._events.append(RequestRejected(request=requests[0].id, code=refusal.code))
        raise RequestError(refusal)

    def _forget(self, requests: Sequence[Request], unfinished: set[str], outcome: str) -> None:
        for request in requests:
            del self._replies[request.id]
            self.waits.end(request.id)
        for request_id in unfinished:
            self._mailbox.post(Cancel(request_id))
        self.num_by_outcome["cancelled"] += len(unfinished)
        self.num_by_outcome["failed"] += outcome == "failed"

    def _deliver(self, replies: Sequence[Reply]) -> None:
        """In the worker's thread: one call per step wakes the loop."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._dispatch, replies)

    def _dispatch(self, replies: Sequence[Reply]) -> None:
        now_s = self._clock()
        for reply in replies:
            if isinstance(reply, Delta):
                self.waits.token(reply.request_id, now_s)
            queue = self._replies.get(reply.request_id)
            if queue is not None:  # else cancelled a moment ago
                queue.put_nowait(reply)


def _unavailable(message: str, code: str) -> Refusal:
    return Refusal(message, 503, "server_error", None, code, 5.0)
