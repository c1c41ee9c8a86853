"""Host memory as far as this process may use it."""

from pathlib import Path

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import MemorySample
from adaptive_kv.sensors.cgroup import CgroupSensor
from adaptive_kv.sensors.groups import PROC
from adaptive_kv.sensors.meminfo import MeminfoSensor


class HostSensor:
    """`meminfo`, or `cgroup` where a limit leaves less than the host has: the sample says which.

    Not for a GPU that shares the host's memory: limits of groups do not hold what is allocated
    through CUDA.
    """

    name = "meminfo"

    def __init__(self, proc: Path = PROC) -> None:
        self._meminfo = MeminfoSensor(proc / "meminfo")
        self._cgroup = CgroupSensor(proc)
        self._is_limited = False

    def read(self) -> MemorySample:
        """Measure now. Raises `SensorError`, also when a limit that was known cannot be read."""
        host, limited = self._meminfo.read(), self._read_limit()
        if limited is None or host.free_bytes <= limited.free_bytes:
            return host
        return limited

    def close(self) -> None:
        """Close both."""
        self._meminfo.close()
        self._cgroup.close()

    def _read_limit(self) -> MemorySample | None:
        try:
            limited = self._cgroup.read_limit()
        except SensorError:
            if self._is_limited:
                raise  # the host alone would now say too much
            return None
        self._is_limited = limited is not None
        return limited
