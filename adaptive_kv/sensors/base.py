"""What a memory sensor is, and what it answers."""

import time
from dataclasses import dataclass
from typing import Protocol

from adaptive_kv.errors import SensorError


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """Memory of the device at one moment, whoever uses it. `time_s` is monotonic."""

    total_bytes: int
    free_bytes: int
    source: str
    time_s: float


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
