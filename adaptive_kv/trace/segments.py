"""The files of a recording: segments that begin with the header, the oldest deleted for new ones.

A segment can be read however the process ended: what was written before the last flush is there.
"""

import gzip
import io
import time
from pathlib import Path

PATTERN = "trace-*.jsonl.gz"
NUM_SEGMENTS = 8
"""About so many segments share `max_bytes`."""

_FLUSH_S = 5.0
_FLUSH_CHARS = 2**16


class Segments:
    """Writes lines into `folder`; its files never take more than `max_bytes` of the disk.

    Only files that are named like segments are ever deleted. Raises `OSError`.
    """

    def __init__(self, folder: Path, header: str, max_bytes: int) -> None:
        self._folder = folder
        self._header = header
        self._max_bytes = max_bytes
        self._file: io.BufferedWriter | None = None
        self._gzip: gzip.GzipFile | None = None
        self._num_chars = 0
        self._flushed_s = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self.begin()

    def begin(self) -> None:
        """Go on in a new segment; the oldest ones make room for it."""
        self.close()
        files = self._closed_files()
        segment_bytes = self._max_bytes // NUM_SEGMENTS
        sizes = [file.stat().st_size for file in files]
        while files and sum(sizes) > self._max_bytes - 2 * segment_bytes:
            files.pop(0).unlink()
            sizes.pop(0)
        number = 1 + int(files[-1].name.split("-")[1].split(".")[0]) if files else 1
        self._file = (self._folder / f"trace-{number:08d}.jsonl.gz").open("xb")
        self._gzip = gzip.GzipFile(filename="", mode="wb", fileobj=self._file, mtime=0)
        self.write(self._header)
        self.flush()

    @property
    def is_full(self) -> bool:
        """Whether the present segment has its share of bytes."""
        assert self._file is not None
        return self._file.tell() >= self._max_bytes // NUM_SEGMENTS

    def write(self, line: str) -> None:
        """Append a line; it is on its way to the disk some seconds later."""
        assert self._gzip is not None
        self._gzip.write(line.encode() + b"\n")
        self._num_chars += len(line)
        if self._num_chars > _FLUSH_CHARS or time.monotonic() - self._flushed_s > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Make everything written so far readable."""
        assert self._gzip is not None
        assert self._file is not None
        self._gzip.flush()
        self._file.flush()
        self._num_chars, self._flushed_s = 0, time.monotonic()

    def close(self) -> None:
        """End the present segment."""
        if self._gzip is not None and self._file is not None:
            self._gzip.close()
            self._file.close()
            self._gzip = self._file = None

    def _closed_files(self) -> list[Path]:
        return sorted(self._folder.glob(PATTERN))
