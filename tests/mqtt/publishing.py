"""A real publisher in a loop of its own thread, fed with hand-made truths."""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from broker import PATIENT_S, comes_true
from statuses import make_status

from adaptive_kv.config import MqttSettings
from adaptive_kv.documents import COMMANDS, DocumentMaker, info_document
from adaptive_kv.engine.card import ModelCard
from adaptive_kv.engine.client import EngineClient
from adaptive_kv.engine.mailbox import Mailbox
from adaptive_kv.events import Drain, EventLog
from adaptive_kv.mqtt.commands import Orders
from adaptive_kv.mqtt.link import Timing
from adaptive_kv.mqtt.publisher import Publisher

CARD = ModelCard(
    name="demo",
    max_context=4096,
    vocab_size=100,
    created_s=0,
    supports=lambda mode: mode.page_format != "int8",
)
HASTY = Timing(answer_s=1.0, keepalive_s=3, will_delay_s=1, longest_retry_s=0.2, farewell_s=3.0)
BRIEF = replace(HASTY, farewell_s=0.2)
"""For tests that are not about the end."""


async def _reload() -> None:
    """As if nothing had changed."""


@dataclass
class Node:
    """What a worker would have: a log to append to and a status to replace."""

    events: EventLog = field(default_factory=lambda: EventLog(capacity=64))
    mailbox: Mailbox = field(default_factory=lambda: Mailbox(make_status()))
    complaints: list[str] = field(default_factory=list)
    """What asyncio found nobody had looked after."""
    publisher: Publisher = field(init=False)
    documents: DocumentMaker = field(init=False)

    def change(self, **changes: Any) -> None:
        self.mailbox.status = replace(self.mailbox.status, **changes)

    def append(self, *numbers: int) -> None:
        for number in numbers:
            self.events.append(Drain(running=number))

    def is_connected(self) -> bool:
        return self.publisher.status.is_connected

    def connects(self) -> bool:
        return comes_true(self.is_connected)

    def has_told_all(self) -> bool:
        """Whether the broker soon has confirmed everything."""
        return comes_true(lambda: self.publisher._teller._cursor._seq == self.events.last_seq)


def make_node(
    url: str | None,
    events: EventLog | None = None,
    timing: Timing = HASTY,
    reload: Callable[[], Awaitable[object]] = _reload,
    boot_id: str = "00c0ffee",
    **settings: Any,
) -> Node:
    """A node called `edge-07` that does not run yet."""
    node = Node(events=events or EventLog(capacity=64))
    info = info_document(
        node="edge-07",
        boot_id=boot_id,
        time=0.0,
        device="cpu",
        model="demo",
        memory_source="file",
        ladder=("full", "int4"),
        commands=COMMANDS if settings.get("commands") else (),
    )
    chosen = MqttSettings(url=url, node="edge-07", **{"heartbeat_s": 60.0, **settings})
    mailbox = node.mailbox
    node.documents = DocumentMaker(lambda: mailbox.status, node="edge-07", boot_id=boot_id)
    node.publisher = Publisher(
        chosen,
        info=info,
        documents=node.documents,
        events=node.events,
        orders=Orders(client=EngineClient(mailbox, max_in_flight=1), card=CARD, reload=reload),
        timing=timing,
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
        loop.set_exception_handler(lambda _, context: node.complaints.append(repr(context)))
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
        assert not node.complaints, node.complaints
