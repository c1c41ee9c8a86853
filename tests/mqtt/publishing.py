"""A real publisher in a loop of its own thread, fed with hand-made truths."""

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from broker import PATIENT_S, comes_true
from statuses import make_status

from adaptive_kv.config import MqttSettings
from adaptive_kv.documents import DocumentMaker, info_document
from adaptive_kv.engine.status import Status
from adaptive_kv.events import Drain, EventLog
from adaptive_kv.mqtt.link import Timing
from adaptive_kv.mqtt.publisher import Publisher

HASTY = Timing(answer_s=1.0, keepalive_s=3, will_delay_s=1, longest_retry_s=0.2, farewell_s=3.0)


@dataclass
class Node:
    """What a worker would have: a log to append to and a status to replace."""

    events: EventLog = field(default_factory=lambda: EventLog(capacity=64))
    truth: Status = field(default_factory=make_status)
    complaints: list[str] = field(default_factory=list)
    """What asyncio found nobody had looked after."""
    publisher: Publisher = field(init=False)
    documents: DocumentMaker = field(init=False)

    def change(self, **changes: Any) -> None:
        self.truth = replace(self.truth, **changes)

    def append(self, *numbers: int) -> None:
        for number in numbers:
            self.events.append(Drain(running=number))

    def is_connected(self) -> bool:
        return self.publisher.status.is_connected

    def connects(self) -> bool:
        return comes_true(self.is_connected)

    def has_told_all(self) -> bool:
        """Whether the broker soon has confirmed everything."""
        return comes_true(lambda: self.publisher._cursor._seq == self.events.last_seq)


def make_node(
    url: str | None, events: EventLog | None = None, timing: Timing = HASTY, **settings: Any
) -> Node:
    """A node called `edge-07` that does not run yet."""
    node = Node(events=events or EventLog(capacity=64))
    info = info_document(
        node="edge-07",
        boot_id="00c0ffee",
        time=0.0,
        device="cpu",
        model="demo",
        memory_source="file",
        ladder=("full", "int4"),
    )
    chosen = MqttSettings(url=url, node="edge-07", **{"heartbeat_s": 60.0, **settings})
    node.documents = DocumentMaker(lambda: node.truth, node="edge-07", boot_id="00c0ffee")
    node.publisher = Publisher(
        chosen, info=info, documents=node.documents, events=node.events, timing=timing
    )
    return node


@contextmanager
def publishing(
    url: str | None, events: EventLog | None = None, timing: Timing = HASTY, **settings: Any
) -> Iterator[Node]:
    """A publisher that runs, and is cancelled at the end as the service does it."""
    node = make_node(url, events, timing, **settings)
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = queue.Queue()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: node.complaints.append(str(context)))
        task = asyncio.create_task(node.publisher.run())
        started.put((loop, task))
        await asyncio.wait([task])

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="publisher")
    thread.start()
    loop, task = started.get(timeout=PATIENT_S)
    try:
        yield node
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(task.cancel)
        thread.join(PATIENT_S)
        assert not thread.is_alive()
        assert not node.complaints
