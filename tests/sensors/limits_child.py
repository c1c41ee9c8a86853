"""Reads sensors and uses memory, as it is told on stdin: `[verb, argument, ...]` in JSON."""

import json
import mmap
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adaptive_kv.config import MemorySettings
from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import Sensor
from adaptive_kv.sensors.choose import make_sensors

Answer = dict[str, Any]


class Child:
    """One method per verb."""

    def __init__(self) -> None:
        self.sensors = {source: _sensor(source) for source in ("cgroup", "auto")}
        self.held: list[mmap.mmap] = []

    def read(self, which: str) -> Answer:
        """What a sensor says; it is the same one every time."""
        try:
            return asdict(self.sensors[which].read())
        except SensorError as error:
            return {"source": error.source, "why": error.why}

    def allocate(self, num_bytes: int) -> Answer:
        """Take memory and touch every page of it."""
        self.held.append(mmap.mmap(-1, num_bytes))
        for start in range(0, num_bytes, mmap.PAGESIZE):
            self.held[-1][start] = 1
        return {}

    def release(self) -> Answer:
        """Give all of it back."""
        for held in self.held:
            held.close()
        self.held.clear()
        return {}

    def write(self, name: str, num_bytes: int) -> Answer:
        """Fill the page cache with a file on a disk, and leave the file there."""
        with Path(name).open("wb") as file:
            file.writelines(b"1" * 2**20 for _ in range(num_bytes // 2**20))
            file.flush()
            os.fsync(file.fileno())
        return {}


def _sensor(source: str) -> Sensor:
    (sensor,) = make_sensors(MemorySettings(source=source), "cpu", lambda: 0)
    return sensor


def main() -> None:
    """Obey until stdin ends."""
    child = Child()
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        sys.stdout.write(json.dumps(getattr(child, verb)(*arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
