"""Every event as one line of the log, with the keys and values that it has over MQTT."""

import asyncio
import json
import logging
from collections.abc import Callable

import structlog

from adaptive_kv.events import (
    Event,
    EventLog,
    Oom,
    OomAverted,
    PolicyFault,
    Recorded,
    RequestRejected,
    SensorFault,
)
from adaptive_kv.in_loop import in_loop

_LEVELS: dict[type[Event], int] = {
    Oom: logging.ERROR,
    OomAverted: logging.WARNING,
    PolicyFault: logging.WARNING,
    RequestRejected: logging.DEBUG,  # as many as clients like
    SensorFault: logging.WARNING,
}
_SAID_OTHERWISE = {"schema", "node", "boot_id", "time", "type"}
_log = structlog.get_logger(__name__)


async def log_events(events: EventLog, document: Callable[[Recorded], str]) -> None:
    """Log every event until cancelled; `document` is the JSON of one.

    Events are appended by threads that must not wait for whoever reads the log, so this one does.
    """
    news, seq = asyncio.Event(), 0
    stop_listening = events.listen(in_loop(news.set))
    try:
        while True:
            news.clear()
            seq = _log_since(events, seq, document)
            await news.wait()
    finally:
        stop_listening()
        _log_since(events, seq, document)


def _log_since(events: EventLog, seq: int, document: Callable[[Recorded], str]) -> int:
    """Log the events after `seq`; returns where the next ones begin."""
    records, num_dropped = events.since(seq)
    if num_dropped:
        _log.warning("events_not_logged", num=num_dropped)
    for record in records:
        try:
            _log_one(record, document)
        except Exception:  # noqa: BLE001 - a line that is lost must not end the service
            _log.exception("event_not_logged", type=record.event.type)
    return seq + num_dropped + len(records)


def _log_one(record: Recorded, document: Callable[[Recorded], str]) -> None:
    told = json.loads(document(record))
    values = {key: told[key] for key in told if key not in _SAID_OTHERWISE}
    _log.log(_LEVELS.get(type(record.event), logging.INFO), record.event.type, **values)
