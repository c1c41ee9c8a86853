"""What a flood of changes costs the worker that publishes nothing itself, and how much it keeps.

Three hundred times a second the status is replaced and a switch of the mode is appended to the
event log, as the worker does it, while the publisher of the same process tells a real mosquitto:
one that is well, one that is frozen, and one that is not there.

    python benchmarks/mqtt.py                         rewrites docs/benchmarks/mqtt.*
    python benchmarks/mqtt.py --seconds 1 --output here.json --document here.md
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
from machine import machine
from mqtt_report import render
from running import file_parser, publish

from adaptive_kv.config import MqttSettings
from adaptive_kv.documents import DocumentMaker, info_document
from adaptive_kv.engine.mailbox import Mailbox
from adaptive_kv.engine.status import Health, PolicyStatus, Status
from adaptive_kv.events import EventLog, ModeChanged
from adaptive_kv.mqtt.publisher import Publisher
from adaptive_kv.policy import CacheMode, Latency, Load, Memory

_MODES = (CacheMode("full"), CacheMode("int4"))
_MIB = 2**20
_MEMORY_LOOKS = 20


def main(arguments: Sequence[str]) -> None:
    """Measure, write the JSON, then the document."""
    parser = file_parser(__doc__, "mqtt")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--per-second", type=int, default=300)
    options = parser.parse_args(arguments)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    print(json.dumps(publish(options, _measure, render)))


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    seconds, per_second, rows = options.seconds, options.per_second, {}
    for name in ("well", "frozen", "away"):
        with tempfile.TemporaryDirectory() as folder, _broker(Path(folder), name) as url:
            rows[name] = _flood(url, seconds, per_second, is_heard=name == "well")
    return {
        "machine": machine(),
        "seconds": seconds,
        "changes_per_s": per_second,
        "brokers": rows,
    }


@contextmanager
def _broker(folder: Path, how: str) -> Iterator[str]:
    """The address of a mosquitto that is `well`, `frozen` or `away`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if how == "away":
        yield f"mqtt://127.0.0.1:{port}"
        return
    config = folder / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n{user}", "utf-8")
    found = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin")
    assert found is not None, "mosquitto is not installed"
    with subprocess.Popen([found, "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)
            if how == "frozen":
                process.send_signal(signal.SIGSTOP)
            yield f"mqtt://127.0.0.1:{port}"
        finally:
            process.kill()


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return


@dataclass(slots=True)
class _Seen:
    """What was measured while changes were made."""

    enqueue_s: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)
    cpu_s: float = 0.0
    """Of the whole process."""


def _flood(url: str, seconds: float, per_second: int, *, is_heard: bool) -> Mapping[str, Any]:
    mailbox, events = Mailbox(_status()), EventLog()
    documents = DocumentMaker(lambda: mailbox.status, node="flood", boot_id="00000000")
    with _publishing(url, documents, events) as publisher:
        while is_heard and not publisher.status.is_connected:
            time.sleep(0.01)
        seen = _change(mailbox, events, seconds, per_second)
        while is_heard and _num_told(publisher) < events.last_seq:
            time.sleep(0.01)
        kept, num_dropped = events.since(_num_told(publisher))
        num_dropped += publisher._teller._cursor.num_dropped  # noqa: SLF001 - nobody else asks
    return _figures(seen, seconds) | {
        "events": events.last_seq,
        "events_told": events.last_seq - len(kept) - num_dropped,
        "events_dropped": num_dropped,
        "events_kept": len(kept),
    }


@contextmanager
def _publishing(url: str, documents: DocumentMaker, events: EventLog) -> Iterator[Publisher]:
    """The publisher in a loop of a thread of its own, as it is in the service."""
    info = info_document(
        node=documents.node,
        boot_id=documents.boot_id,
        time=time.time(),
        device="none",
        model="none",
        memory_source="none",
        ladder=_MODES,
    )
    settings = MqttSettings(url=url, node=documents.node)
    publisher = Publisher(settings, info=info, documents=documents, events=events)
    loop = asyncio.new_event_loop()
    task = loop.create_task(publisher.run())

    def run() -> None:
        loop.run_until_complete(asyncio.wait([task]))
        loop.close()

    thread = threading.Thread(target=run, name="publisher")
    thread.start()
    try:
        yield publisher
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _num_told(publisher: Publisher) -> int:
    """The `seq` up to which events are dealt with."""
    return publisher._teller._cursor._seq  # noqa: SLF001 - nobody else asks


def _change(mailbox: Mailbox, events: EventLog, seconds: float, per_second: int) -> _Seen:
    seen, num_changes = _Seen(), round(seconds * per_second)
    statuses = [_status(mode=mode, reason_text=f"for the sake of {mode}") for mode in _MODES]
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    for number in range(num_changes):
        time.sleep(max(0.0, began_s + number / per_second - time.monotonic()))
        event = _event(number)
        started_s = time.perf_counter()
        mailbox.status = statuses[number % 2]
        events.append(event)
        seen.enqueue_s.append(time.perf_counter() - started_s)
        if number % max(1, num_changes // _MEMORY_LOOKS) == 0:
            seen.rss_bytes.append(_rss_bytes())
    seen.cpu_s = time.process_time() - began_cpu_s
    return seen


def _event(number: int) -> ModeChanged:
    return ModeChanged(
        from_mode=_MODES[number % 2],
        to_mode=_MODES[1 - number % 2],
        reason="a change for its own sake",
        duration_s=0.001,
        freed_bytes=number,
        sequences=8,
    )


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _status(**changes: Any) -> Status:
    status = Status(
        time_s=time.monotonic(),
        step=1,
        health=Health.OK,
        is_ready=True,
        mode=_MODES[0],
        mode_age_s=0.0,
        pinned=False,
        reason_code="policy",
        reason_text="",
        policy=PolicyStatus(name="ladder"),
        memory=Memory(
            total_bytes=8 * 2**30,
            free_bytes=2**30,
            floor_bytes=2**28,
            weights_bytes=2**30,
            cache_bytes=2**29,
            source="none",
            sample_age_s=0.0,
        ),
        latency=Latency(token_s=0.01, p50_s=0.01, p95_s=0.02),
        load=Load(running=8, waiting=0, tokens_per_s=100.0),
        costs={},
        num_sequences_by_mode={_MODES[0]: 8},
    )
    return replace(status, **changes)


def _figures(seen: _Seen, seconds: float) -> dict[str, Any]:
    cuts_us = [cut * 1e6 for cut in statistics.quantiles(seen.enqueue_s, n=1000)]
    settled = len(seen.rss_bytes) // 4
    return {
        "enqueue_p50_us": round(cuts_us[499], 1),
        "enqueue_p99_us": round(cuts_us[989], 1),
        "enqueue_p999_us": round(cuts_us[998], 1),
        "enqueue_max_us": round(max(seen.enqueue_s) * 1e6, 1),
        "rss_settled_mib": round(seen.rss_bytes[settled] / _MIB, 1),
        "rss_end_mib": round(seen.rss_bytes[-1] / _MIB, 1),
        "cpu_share": round(seen.cpu_s / seconds, 3),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
