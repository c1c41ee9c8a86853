"""The whole service put together, from its start to its last word.

Imports everything; commands import it once their configuration has turned out to be right.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import structlog
import torch

from adaptive_kv.cli.event_lines import log_events
from adaptive_kv.cli.hangups import Hangups
from adaptive_kv.cli.notify import notify, notify_news
from adaptive_kv.cli.progress import shown_progress
from adaptive_kv.cli.reloading import Reloaded, Reloader, Reloads
from adaptive_kv.cli.supervision import supervise
from adaptive_kv.config import Settings
from adaptive_kv.documents import (
    COMMANDS,
    DocumentMaker,
    InfoDocument,
    calibration_state,
    info_document,
    new_boot_id,
)
from adaptive_kv.engine.client import EngineClient
from adaptive_kv.engine.service import Engine, start_engine
from adaptive_kv.engine.status import Health
from adaptive_kv.errors import Refusal
from adaptive_kv.events import EventLog
from adaptive_kv.mqtt.commands import Orders
from adaptive_kv.mqtt.publisher import Publisher
from adaptive_kv.policy import CacheMode
from adaptive_kv.server.app import make_app
from adaptive_kv.server.run import serve_http
from adaptive_kv.server.service import Documents

_POLL_S = 0.05
_CLOSE_S = 3.0
"""For connections to close once all requests have ended."""
_STOP_S = 30.0
"""For everything after the drain, so that systemd does not lose patience before we do."""
_GONE = Refusal("the service is stopping", 503, "server_error", code="stopping", retry_after_s=5.0)
_log = structlog.get_logger(__name__)


def run_service(
    settings: Settings, pinned: CacheMode | None, load: Callable[[], Settings], hangups: Hangups
) -> bool:
    """Serve until SIGTERM or SIGINT, then drain. False when the worker died by itself.

    `load` loads the settings anew, at SIGHUP; `hangups` has noted one that came early.

    Raises `ConfigError`, `ModelError` or `PolicyError` where the service cannot start.
    """
    events = EventLog()
    with shown_progress() as tell:
        engine = start_engine(settings, events, tell)
    try:
        return asyncio.run(_serve(_Service(engine, events, settings, load, hangups), pinned))
    finally:
        engine.stop()


class _Service:
    """The parts that speak to the outside, beside one engine."""

    def __init__(
        self,
        engine: Engine,
        events: EventLog,
        settings: Settings,
        load: Callable[[], Settings],
        hangups: Hangups,
    ) -> None:
        server = settings.server
        self.engine = engine
        self.events = events
        self.settings = settings
        self.hangups = hangups
        self.client = EngineClient(
            engine.mailbox, max_in_flight=server.max_running + server.max_waiting, events=events
        )
        self.documents = DocumentMaker(
            lambda: engine.mailbox.status, node=settings.mqtt.node, boot_id=new_boot_id()
        )
        self.reloads = Reloads(Reloader(engine, settings, load, self._tell_reloaded))
        self.publisher = Publisher(
            settings.mqtt,
            info=_info(engine, self.documents, settings, engine.ladder),
            documents=self.documents,
            events=events,
            orders=Orders(client=self.client, card=engine.card, reload=self.reloads.ask),
        )
        self.closing = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        """Whether the worker works."""
        is_failed = self.engine.mailbox.status.health is Health.FAILED
        return self.engine.thread.is_alive() and not is_failed

    async def log_events(self) -> None:
        """Until cancelled."""
        await log_events(self.events, lambda record: self.documents.event(record).to_json())

    async def http(self) -> None:
        """Answer requests until `closing`."""
        app = make_app(
            client=self.client,
            prompts=self.engine.prompts,
            card=self.engine.card,
            events=self.events,
            documents=Documents(
                state=lambda: self.documents.state().to_json(),
                event=lambda record: self.documents.event(record).to_json(),
            ),
            settings=self.settings.server,
            tally=self.engine.tally,
            cache_bytes=lambda: self.engine.store.bytes_by_format,
            budget_bytes=self.settings.memory.budget,
        )
        await serve_http(app, self.settings.server, stop=self.closing, on_listening=self._listens)

    def _listens(self, url: str) -> None:
        _log.info("listening", url=url)
        notify("READY=1")
        self.reloads.start(self.hangups)  # not before: a reload ends with READY=1

    def _tell_reloaded(self, reloaded: Reloaded) -> None:
        if "cache.ladder" in reloaded.changed:
            info = _info(self.engine, self.documents, self.settings, reloaded.ladder)
            self.publisher.replace_info(info)


def _info(
    engine: Engine, documents: DocumentMaker, settings: Settings, ladder: Iterable[CacheMode]
) -> InfoDocument:
    device, found = engine.loaded.model.device, engine.calibration
    return info_document(
        node=documents.node,
        boot_id=documents.boot_id,
        time=time.time(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        model=engine.card.name,
        memory_source=engine.mailbox.status.memory.source,
        ladder=ladder,
        calibration=calibration_state(found, settings.cache.max_kl) if found else None,
        commands=COMMANDS if settings.mqtt.commands else (),
        has_graphs=bool(engine.graphs),
    )


async def _serve(service: _Service, pinned: CacheMode | None) -> bool:
    if pinned is not None:
        service.client.pin(pinned)
    try:
        async with asyncio.TaskGroup() as tasks:
            with _signals() as told:
                lines = tasks.create_task(service.log_events(), name="event-lines")
                mqtt = tasks.create_task(service.publisher.run(), name="mqtt")
                await _first_step(service, told)
                status = tasks.create_task(supervise(lambda: service.client.status), name="systemd")
                http = tasks.create_task(service.http(), name="http")
                is_well = await _told_or_dead(service, told)
                drain_s = service.settings.server.drain_timeout_s * is_well
                notify("STOPPING=1")
                notify_news(f"EXTEND_TIMEOUT_USEC={int((drain_s + _STOP_S) * 10**6)}")
                await _drain(service.client, drain_s)
                service.closing.set()
                await asyncio.wait([http], timeout=_CLOSE_S)
                for task in (http, mqtt, lines, status):
                    task.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return is_well


async def _first_step(service: _Service, told: asyncio.Event) -> None:
    """Wait until the worker takes requests, so that whoever can connect can also ask."""
    while service.engine.mailbox.status.step == 0 and service.is_alive and not told.is_set():
        await asyncio.sleep(_POLL_S)


async def _told_or_dead(service: _Service, told: asyncio.Event) -> bool:
    """True once told to stop, False once the worker has died."""
    while not told.is_set():
        if not service.is_alive:
            _log.critical("worker_died")
            return False
        with suppress(TimeoutError):
            await asyncio.wait_for(told.wait(), _POLL_S)
    return True


async def _drain(client: EngineClient, timeout_s: float) -> None:
    """Take nothing new, let what is in flight finish for `timeout_s`, fail the rest."""
    _log.info("draining", requests=client.num_in_flight, timeout_s=timeout_s)
    client.drain()
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while client.num_in_flight or client.status.health is not Health.DRAINING:
                await asyncio.sleep(_POLL_S)
    client.fail_all(_GONE)


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second one ends the process at once."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()

    def take() -> None:
        if told.is_set():
            os._exit(1)  # a clean exit would wait for the step that runs
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, take)
    try:
        yield told
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
