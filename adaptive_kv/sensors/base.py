"""What sensors of memory and of the device are, and what they answer."""

import time
from dataclasses import dataclass
from typing import Protocol

from adaptive_kv.errors import SensorError
from adaptive_kv.policy import Device

MAX_DEVICE_AGE_S = 5.0
"""What was known about the device is unknown when it is older than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """Memory of the device at one moment, whoever uses it. `time_s` is monotonic."""

    total_bytes: int
    free_bytes: int
    """Free for us: free on the device, and `reusable_bytes`."""
    source: str
    time_s: float
    reusable_bytes: int = 0
    """Of `free_bytes`, what our own allocator holds but does not use; not free for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """State of the device besides its memory; None where not known. `time_s` is monotonic."""

    time_s: float = float("-inf")
    temperature_c: float | None = None
    power_w: float | None = None
    utilization: float | None = None
    """Share of the time in which the device was at work, 0 to 1."""
    throttle_reasons: tuple[str, ...] | None = None
    """What holds the clocks down; empty if nothing does."""
    stalled_some: float | None = None
    """Share of the time in which a process waited for host memory, 0 to 1."""
    stalled_full: float | None = None
    """The same, for all processes at once."""

    def seen_at(self, now_s: float) -> Device:
        """What a policy is shown at `now_s`: nothing that is older than `MAX_DEVICE_AGE_S`."""
        if now_s - self.time_s > MAX_DEVICE_AGE_S:
            return Device()
        reasons = self.throttle_reasons
        return Device(
            temperature_c=self.temperature_c,
            throttled=None if reasons is None else bool(reasons),
            utilization=self.utilization,
        )


class Sensor(Protocol):
    """One source of memory truth; used by one thread at a time."""

    name: str
    """As the configuration calls it: `nvml`, `meminfo`, `file:PATH`."""

    def read(self) -> MemorySample:
        """Measure now. Raises `SensorError`; a later call may work again."""
        ...

    def close(self) -> None:
        """Give back what was opened; reading afterwards opens it again."""
        ...


class Telemetry(Protocol):
    """One source of what else is known about the device; used by one thread at a time."""

    name: str
    period_s: float
    """How often it is worth asking."""

    def read(self, before: DeviceSample) -> DeviceSample:
        """`before` with the own fields as they are now, None where the source does not say."""
        ...

    def close(self) -> None:
        """Give back what was opened; reading afterwards opens it again."""
        ...


def checked_sample(
    source: str, total_bytes: object, free_bytes: object, *, age_s: float = 0.0
) -> MemorySample:
    """A sample taken `age_s` ago, of numbers that can be true; raises `SensorError` otherwise."""
    for what, value in (("total", total_bytes), ("free", free_bytes)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise SensorError(source, f"{what} memory is {value!r}, which is no number of bytes")
    assert isinstance(total_bytes, int)
    assert isinstance(free_bytes, int)
    if not 0 <= free_bytes <= total_bytes or total_bytes == 0:
        raise SensorError(source, f"{free_bytes} bytes free of {total_bytes} cannot be")
    return MemorySample(
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        source=source,
        time_s=time.monotonic() - age_s,
    )
