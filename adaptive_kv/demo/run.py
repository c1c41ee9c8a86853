"""The demonstration from its first process to its last line."""

import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from adaptive_kv.config import MemorySettings
from adaptive_kv.demo.client import Api
from adaptive_kv.demo.followers import following_events, following_mqtt
from adaptive_kv.demo.load import Clock
from adaptive_kv.demo.processes import LADDER, broker, serving, squeezing
from adaptive_kv.demo.report import write_report
from adaptive_kv.demo.room import HEADROOM_BYTES, cgroup_room_bytes, plan_room
from adaptive_kv.demo.scenario import Pace, Scenario
from adaptive_kv.demo.screen import Screen, showing
from adaptive_kv.demo.timeline import Summary, Timeline, summarize
from adaptive_kv.sensors.choose import make_sensors

_START_S = 100.0


def run_demo(report: Path, pace: Pace | None = None) -> int:
    """Run it, write `report`, end stdout with one line of JSON; returns the exit status.

    Raises `AdaptiveKVError` where the machine is too small or the service does not live.
    """
    timeline = Timeline(device=_device())
    with showing() as screen:
        try:
            _run(timeline, screen, pace or Pace())
        finally:
            summary = summarize(timeline, LADDER)
            if timeline.samples:
                write_report(report, timeline, summary)
    _tell(summary, report)
    return 1 if summary.missing else 0


def _device() -> str:
    import torch  # noqa: PLC0415 - commands that only fail need not load it

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _run(timeline: Timeline, screen: Screen, pace: Pace) -> None:
    began_s = time.monotonic()
    (sensor, *_) = make_sensors(MemorySettings(), timeline.device, lambda: 0)
    sample = sensor.read()
    timeline.memory_source = sensor.name
    room = plan_room(sample, cgroup_room_bytes() if sensor.name == "meminfo" else None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adaptive-kv-demo-")))
        url = stack.enter_context(broker(folder))
        if url is None:
            screen.tell("mosquitto is not installed: nobody listens over MQTT")
        stack.enter_context(following_mqtt(url, timeline))
        service = stack.enter_context(serving(folder, timeline.device, room, url))
        screen.tell("the service starts")
        api = Api(service.port(_START_S))
        squeezer = stack.enter_context(squeezing(service.process.pid, timeline.device, room))
        squeezer.settle(HEADROOM_BYTES)
        clock = Clock(time.monotonic(), time.time())
        stack.enter_context(following_events(api, timeline, clock))
        Scenario(
            service=service,
            api=api,
            squeezer=squeezer,
            timeline=timeline,
            clock=clock,
            screen=screen,
            pace=replace(pace, max_total_s=pace.max_total_s - (clock.start_s - began_s)),
        ).run()


def _tell(summary: Summary, report: Path) -> None:
    sys.stderr.write(f"demo: the timeline is in {report}\n")
    for claim in summary.missing:
        sys.stderr.write(f"demo: not so: {claim}\n")
    sys.stdout.write(summary.to_json() + "\n")
    sys.stdout.flush()
