"""The demonstration from its first process to its last line."""

import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from adaptive_kv.config import MemorySettings
from adaptive_kv.demo.client import Api
from adaptive_kv.demo.followers import following_events, following_mqtt
from adaptive_kv.demo.load import Clock
from adaptive_kv.demo.processes import LADDER, broker, demo_config, serving, squeezing
from adaptive_kv.demo.report import write_report
from adaptive_kv.demo.room import HEADROOM_BYTES, cgroup_room_bytes, plan_room
from adaptive_kv.demo.scenario import Pace, Scenario
from adaptive_kv.demo.screen import Screen, showing
from adaptive_kv.demo.timeline import Summary, Timeline, summarize
from adaptive_kv.errors import AdaptiveKVError, ConfigError
from adaptive_kv.sensors.choose import make_sensors

_START_S = 100.0
_GPU_FILES = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "dxg")
"""In /dev: of desktop and server GPUs, of Jetson boards, of WSL."""


def run_demo(report: Path, pace: Pace | None = None) -> int:
    """Run it, write `report`, end stdout with one line of JSON; returns the exit status.

    Raises `AdaptiveKVError` where the machine is too small, the service does not start or the
    report could not be written.
    """
    if not report.parent.is_dir():
        raise ConfigError(f"--report: there is no folder {report.parent}")
    timeline = Timeline(device=_device())
    with _interruptible(), showing() as screen:
        try:
            failure = _run(timeline, screen, pace or Pace())
        finally:
            summary = summarize(timeline, LADDER)
            if timeline.samples:
                write_report(report, timeline, summary)
    faults = [*([str(failure)] if failure else []), *summary.faults]
    _tell(summary, faults, timeline, report)
    return 1 if faults else 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does: with everything that it started."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _device() -> str:
    """`cpu` or `cuda:0`; torch is slow to load, and only asked where there could be a GPU."""
    if not any(file for name in _GPU_FILES for file in Path("/dev").glob(name)):
        return "cpu"
    import torch  # noqa: PLC0415 - see above

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _run(timeline: Timeline, screen: Screen, pace: Pace) -> AdaptiveKVError | None:
    """Everything between the first and the last process; what ended the run early, if anything."""
    began_s = time.monotonic()
    (sensor, *_) = make_sensors(MemorySettings(), timeline.device, lambda: 0)
    timeline.memory_source = sensor.name
    limit_bytes = cgroup_room_bytes() if sensor.name == "meminfo" else None
    room = plan_room(sensor.read(), limit_bytes)
    with ExitStack() as clients, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adaptive-kv-demo-")))
        url = stack.enter_context(broker(folder))
        if url is None:
            screen.tell("neither mosquitto nor amqtt is installed: nobody listens over MQTT")
        stack.enter_context(following_mqtt(url, timeline))
        screen.tell("the service starts")
        config = demo_config(timeline.device, room, url)
        service = stack.enter_context(serving(folder, config))
        api = Api(service.port(_START_S))
        squeezer = stack.enter_context(squeezing(service.process.pid, timeline.device, room))
        squeezer.settle(HEADROOM_BYTES)
        clock = Clock(time.monotonic(), time.time())
        stack.enter_context(following_events(api, timeline, clock))
        scenario = Scenario(
            service=service,
            api=api,
            squeezer=squeezer,
            timeline=timeline,
            clock=clock,
            screen=screen,
            pace=replace(pace, max_total_s=pace.max_total_s - (clock.start_s - began_s)),
        )
        clients.callback(scenario.close)  # last: an unanswered client waits for the service's end
        try:
            scenario.run()
        except AdaptiveKVError as error:
            return error
    return None


def _tell(summary: Summary, faults: list[str], timeline: Timeline, report: Path) -> None:
    sys.stderr.write(f"demo: the timeline is in {report}\n")
    for fault in faults:
        sys.stderr.write(f"demo: not as it should be: {fault}\n")
    if faults and timeline.is_restless:
        sys.stderr.write("demo: other processes took and gave too much; try when they are quiet\n")
    sys.stdout.write(summary.to_json() + "\n")
    sys.stdout.flush()
