"""How much of the time processes wait for host memory (PSI)."""

import time
from dataclasses import replace
from pathlib import Path

from adaptive_kv.sensors.base import DeviceSample
from adaptive_kv.sensors.groups import PROC, unified_group


class PressureTelemetry:
    """Growth of the `total` counters, four times a second: the averages are seconds behind.

    Of the process's own group in version 2 where the kernel accounts for that, otherwise of the
    host. `proc` is where procfs is.
    """

    name = "pressure"
    period_s = 0.25

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._path = self._find()
        self._time_s = 0.0
        self._totals_s: dict[str, float] = {}

    def read(self, before: DeviceSample) -> DeviceSample:
        """`before` with the shares since the last read; None at first and where there is no PSI."""
        now_s, totals_s = time.monotonic(), self._read_totals()
        shares = {
            kind: min(1.0, max(0.0, (total_s - self._totals_s[kind]) / (now_s - self._time_s)))
            for kind, total_s in totals_s.items()
            if kind in self._totals_s and now_s > self._time_s
        }
        self._time_s, self._totals_s = now_s, totals_s
        return replace(
            before,
            time_s=now_s,
            stalled_some=shares.get("some"),
            stalled_full=shares.get("full"),
        )

    def close(self) -> None:
        """Forget the last totals; the next read is a first one."""
        self._totals_s = {}

    def _find(self) -> Path:
        group = unified_group(self._proc)
        of_group = None if group is None else group.path / "memory.pressure"
        return of_group if of_group and of_group.exists() else self._proc / "pressure" / "memory"

    def _read_totals(self) -> dict[str, float]:
        """Seconds stalled since boot by kind: `some` and `full`."""
        try:
            lines = self._path.read_text("ascii").splitlines()
            pairs = [(line.split()[0], line.rsplit("total=", 1)[1]) for line in lines]
            return {kind: int(total_us) / 1e6 for kind, total_us in pairs}
        except (OSError, ValueError, IndexError):
            return {}  # built or booted without PSI
