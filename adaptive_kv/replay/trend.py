"""Where simulated memory is heading, as the service itself tells it."""

from collections import deque

from adaptive_kv.sensors.base import MemorySample
from adaptive_kv.sensors.trend import WINDOW_S, seconds_to_floor


class Trend:
    """The samples that a trend looks at."""

    def __init__(self) -> None:
        self._samples: deque[MemorySample] = deque()

    def add(self, time_s: float, free_bytes: int) -> None:
        """One more sample, newer than the last."""
        sample = MemorySample(total_bytes=0, free_bytes=free_bytes, source="", time_s=time_s)
        self._samples.append(sample)
        while time_s - self._samples[0].time_s > WINDOW_S:
            self._samples.popleft()

    def seconds_to(self, floor_bytes: int) -> float | None:
        """When free memory meets the floor; None where it does not shrink or little is known."""
        return seconds_to_floor(self._samples, floor_bytes)
