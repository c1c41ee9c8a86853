"""What our own allocator holds but does not use is free too: for us."""

from collections.abc import Callable
from dataclasses import replace

from adaptive_kv.sensors.base import MemorySample, Sensor


class HeadroomSensor:
    """What `device` says, and on top of it what this process could use again without asking.

    `reusable_bytes` is called in the thread that reads.
    """

    def __init__(self, device: Sensor, reusable_bytes: Callable[[], int]) -> None:
        self.name = device.name
        self._device = device
        self._reusable_bytes = reusable_bytes

    def read(self) -> MemorySample:
        """Measure now. Raises `SensorError` when the device's own sensor does."""
        sample = self._device.read()
        used_bytes = sample.total_bytes - sample.free_bytes
        # The two were not taken at the same moment: what is reusable is used, on the device.
        reusable_bytes = max(0, min(self._reusable_bytes(), used_bytes))
        return replace(
            sample,
            free_bytes=sample.free_bytes + reusable_bytes,
            reusable_bytes=reusable_bytes,
        )

    def close(self) -> None:
        """Close the sensor of the device."""
        self._device.close()
