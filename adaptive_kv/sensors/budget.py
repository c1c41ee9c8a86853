"""A budget of our own: makes any device look as small as we are allowed to be."""

from collections.abc import Callable

from adaptive_kv.sensors.base import MemorySample, Sensor, checked_sample


class BudgetSensor:
    """Total is the budget; free is what we have not used of it, or less if the device has less.

    `used_bytes` counts weights, cache and workspace of this process and is called in the thread
    that reads. `within` is the sensor of the device that the budget is part of.
    """

    name = "budget"

    def __init__(
        self, budget_bytes: int, used_bytes: Callable[[], int], within: Sensor | None = None
    ) -> None:
        self._budget_bytes = budget_bytes
        self._used_bytes = used_bytes
        self._within = within

    def read(self) -> MemorySample:
        """Measure now. Raises `SensorError` when the device's own sensor does."""
        free_bytes = self._budget_bytes - self._used_bytes()
        if self._within is not None:
            free_bytes = min(free_bytes, self._within.read().free_bytes)
        return checked_sample(self.name, self._budget_bytes, max(0, free_bytes))

    def close(self) -> None:
        """Close the sensor of the device."""
        if self._within is not None:
            self._within.close()
