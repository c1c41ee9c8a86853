"""Every event is a line of the log; what was asked never is."""

import asyncio
import io
import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from cli.test_serve import ASK, ask, serving
from statuses import EVERY_EVENT

from adaptive_kv.cli.event_lines import log_events
from adaptive_kv.documents.make import event_document
from adaptive_kv.events import Drain, EventLog, Recorded
from adaptive_kv.log import configure_logging
from adaptive_kv.settings import LogSettings

SECRET = "zyxomma"


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(LogSettings(level="debug"), stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def document(record: Recorded) -> str:
    return event_document(record, node="box", boot_id="1").to_json()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


async def test_every_event_is_a_line_with_what_it_tells_over_mqtt(out: io.StringIO) -> None:
    events = EventLog()
    events.append(EVERY_EVENT[0])
    task = asyncio.create_task(log_events(events, document))
    await asyncio.sleep(0)
    for event in EVERY_EVENT[1:]:
        events.append(event)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    logged = lines(out)
    told = [json.loads(document(record)) for record in events.since(0)[0]]
    assert [line["event"] for line in logged] == [one["type"] for one in told]
    for line, one in zip(logged, told, strict=True):
        expected = {key: one[key] for key in one.keys() - {"schema", "node", "boot_id", "type"}}
        del expected["time"]
        assert line.items() >= expected.items()
    levels = {line["event"]: line["level"] for line in logged}
    assert levels["mode_changed"] == "info"
    assert levels["oom"] == "error"
    assert levels["request_rejected"] == "debug"


async def test_what_the_log_of_events_let_go_is_counted(out: io.StringIO) -> None:
    events = EventLog(capacity=2)
    for running in range(5):
        events.append(Drain(running=running))
    task = asyncio.create_task(log_events(events, document))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    first, *rest = lines(out)
    assert (first["event"], first["num"]) == ("events_not_logged", 3)
    assert [line["running"] for line in rest] == [3, 4]


async def test_an_event_that_cannot_be_told_is_told_of_and_the_next_one_is(
    out: io.StringIO,
) -> None:
    events = EventLog()
    for running in (1, 2):
        events.append(Drain(running=running))

    def choosy(record: Recorded) -> str:
        if record.seq == 1:
            raise ValueError("not this one")
        return document(record)

    task = asyncio.create_task(log_events(events, choosy))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert [line["event"] for line in lines(out)] == ["event_not_logged", "drain"]


def test_a_switch_is_a_line_with_its_reason_and_no_prompt_is_ever_logged(tmp_path: Path) -> None:
    """Whether a prompt is answered, streamed, refused or broken off, and with every line shown."""
    (tmp_path / "mine.toml").write_text('[log]\nlevel = "debug"\n')
    with serving(tmp_path, "--config", "mine.toml") as served:
        url = f"{served.url}/v1/completions"
        with ask(url, prompt=f"{SECRET} " * 100, max_tokens=400) as answer:
            next(answer)
            assert httpx.put(f"{served.url}/admin/mode", json={"mode": "int4"}).is_success
            texts = [chunk["choices"][0]["text"] for chunk in answer if chunk["choices"]]
        chat = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 4}
        assert httpx.post(f"{served.url}/v1/chat/completions", json=chat, timeout=60).is_success
        for body in (
            {"prompt": SECRET * 9999},
            {"prompt": SECRET, "max_tokens": -1},
            {"prompt": [SECRET, 7]},
            {"messages": SECRET},
        ):
            assert httpx.post(url, json=ASK | body, timeout=60).status_code == 400
        httpx.post(url, content=f'{{"prompt": "{SECRET}"'.encode(), timeout=60)
        with ask(url, prompt=SECRET, max_tokens=3000) as answer:
            next(answer)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.stderr is not None
        log = served.process.stderr.read()
        assert served.process.wait(60) == 0
    found = [json.loads(line) for line in log.splitlines()]
    switch = next(line for line in found if line["event"] == "mode_changed")
    assert (switch["level"], switch["from"], switch["to"]) == ("info", "full", "int4")
    assert switch["reason"]
    assert switch["sequences"] == 1
    assert switch["duration_s"] >= 0
    assert switch["freed_bytes"] > 0
    assert SECRET not in log
    assert "".join(texts)[:30] not in log
