"""Memory as another program states it, for boxes whose memory cannot be read, and for tests."""

import json
import os
import time
from pathlib import Path

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import MemorySample, checked_sample


class FileSensor:
    """`{"total_bytes": n, "free_bytes": n}` in a file that its writer replaces atomically.

    Other keys are ignored. A sample is as old as the file; one not written for `max_age_s` is an
    error.
    """

    def __init__(self, path: Path, *, max_age_s: float) -> None:
        self.name = f"file:{path}"
        self._path = path
        self._max_age_s = max_age_s

    def read(self) -> MemorySample:
        """Read the file as it is now. Raises `SensorError`."""
        age_s, text = self._content()
        if age_s > self._max_age_s:
            raise SensorError(
                self.name,
                f"last written {age_s:.1f} s ago, more than {self._max_age_s:g} s; "
                "is its writer running?",
            )
        try:
            stated = json.loads(text)
        except ValueError as error:
            raise SensorError(self.name, f"not JSON: {error}") from error
        if not isinstance(stated, dict) or not {"total_bytes", "free_bytes"} <= stated.keys():
            raise SensorError(self.name, "not an object with total_bytes and free_bytes")
        return checked_sample(self.name, stated["total_bytes"], stated["free_bytes"], age_s=age_s)

    def close(self) -> None:
        """Nothing is kept open."""

    def _content(self) -> tuple[float, bytes]:
        """Age in seconds and content, both of the same file even if it is replaced meanwhile."""
        try:
            with self._path.open("rb") as file:
                modified_s = os.fstat(file.fileno()).st_mtime
                return max(0.0, time.time() - modified_s), file.read()
        except OSError as error:
            raise SensorError(self.name, f"cannot be read: {error.strerror}") from error
