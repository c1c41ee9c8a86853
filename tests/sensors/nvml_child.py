"""Runs the sensors on whatever libnvidia-ml.so.1 the loader finds, as it is told on stdin.

A line of JSON in, `[verb, argument, ...]`, is a line of JSON out.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adaptive_kv.errors import SensorError
from adaptive_kv.events import EventLog
from adaptive_kv.sensors import nvml
from adaptive_kv.sensors.base import DeviceSample
from adaptive_kv.sensors.choose import gpu_chain
from adaptive_kv.sensors.nvml import NvmlGpu, NvmlSensor
from adaptive_kv.sensors.nvml_telemetry import NvmlTelemetry
from adaptive_kv.sensors.poller import SensorPoller

Answer = dict[str, Any]


class Child:
    """One method per verb."""

    def __init__(self) -> None:
        self.open()

    def open(
        self,
        names: Sequence[str] = (),
        is_integrated: bool | None = None,
        reopen_s: float = 0.0,
    ) -> Answer:
        """Make sensor and telemetry of the GPU of these names."""
        nvml.REOPEN_S = reopen_s
        self.gpu = NvmlGpu(names, is_integrated=is_integrated)
        self.sensor, self.telemetry = NvmlSensor(self.gpu), NvmlTelemetry(self.gpu)
        return {}

    def read(self) -> Answer:
        """Measure memory, or say why not."""
        try:
            return asdict(self.sensor.read())
        except SensorError as error:
            return {"source": error.source, "why": error.why}

    def device(self) -> Answer:
        """Measure the rest, and what a policy is shown of it."""
        sample = self.telemetry.read(DeviceSample())
        return {**asdict(sample), "policy": asdict(sample.seen_at(sample.time_s))}

    def close(self) -> Answer:
        """Let go of the driver."""
        self.sensor.close()
        return {}

    def start(self, hz: float) -> Answer:
        """Start a poller on what was opened."""
        self.events = EventLog()
        self.poller = SensorPoller(
            (self.sensor,), poll_hz=hz, events=self.events, telemetry=(self.telemetry,)
        ).start()
        return {}

    def latest(self) -> Answer:
        """What the poller knows, never waiting for it."""
        sample = self.poller.latest()
        return {
            **asdict(sample),
            "age_s": time.monotonic() - sample.time_s,
            "device": asdict(self.poller.device().seen_at(time.monotonic())),
            "events": [
                {"type": record.event.type, **asdict(record.event)}
                for record in self.events.since(0)[0]
            ],
        }

    def stop(self) -> Answer:
        """Stop the poller."""
        self.poller.close()
        return {}

    def chain(self, is_integrated: bool) -> Answer:
        """Who of the chain for such a GPU answers first."""
        reasons: list[str] = []
        for sensor in gpu_chain(self.gpu, 0, is_integrated=is_integrated):
            try:
                return {**asdict(sensor.read()), "reasons": reasons}
            except SensorError as error:
                reasons.append(str(error))
        return {"source": None, "reasons": reasons}

    def reading(self) -> Answer:
        """What a policy would be shown by an engine on this source of memory."""
        from adaptive_kv.config import load_settings  # noqa: PLC0415 - the engine loads torch
        from adaptive_kv.engine.loading import load_model  # noqa: PLC0415
        from adaptive_kv.engine.service import build_engine  # noqa: PLC0415

        flags = {"memory.source": "nvml", "model.device": "cpu"}
        settings = load_settings(flags=flags, default_file=Path("/nonexistent.toml"))
        engine = build_engine(settings, load_model(settings.model), EventLog())
        engine.sensor.poll()
        worker = engine.worker
        reading = worker._gauge.read(time.monotonic(), 0, worker._controller)
        engine.stop()
        return {"memory": asdict(reading.memory), "device": asdict(reading.device)}

    def loaded(self) -> Answer:
        """Which files of that name are in this process."""
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {"paths": sorted({line.split()[-1] for line in lines if "libnvidia-ml" in line})}


def main() -> None:
    """Obey until stdin ends."""
    child, answers = Child(), sys.stdout
    sys.stdout = sys.stderr  # where everything else that is printed belongs
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        answers.write(json.dumps(getattr(child, verb)(*arguments)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
