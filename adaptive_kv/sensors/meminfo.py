"""Host memory: what the kernel says could be had without swapping."""

from pathlib import Path

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import MemorySample, checked_sample


class MeminfoSensor:
    """`MemTotal` and `MemAvailable` of /proc/meminfo.

    The truth on a CPU, and on boxes whose GPU shares the host's memory: there the driver's own
    answer counts the page cache as used.
    """

    name = "meminfo"

    def __init__(self, path: Path = Path("/proc/meminfo")) -> None:
        self._path = path

    def read(self) -> MemorySample:
        """Measure now. Raises `SensorError`."""
        try:
            lines = self._path.read_text("ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SensorError(self.name, f"cannot read {self._path}: {error}") from error
        sizes = {key: size for key, _, size in (line.partition(":") for line in lines)}
        return checked_sample(
            self.name, self._bytes(sizes, "MemTotal"), self._bytes(sizes, "MemAvailable")
        )

    def close(self) -> None:
        """Nothing is kept open."""

    def _bytes(self, sizes: dict[str, str], key: str) -> int:
        number, _, unit = sizes.get(key, "").strip().partition(" ")
        if unit != "kB" or not number.isascii() or not number.isdigit():
            raise SensorError(self.name, f"{self._path} has no {key} in kB")
        return int(number) * 1024
