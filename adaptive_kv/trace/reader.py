"""Reads traces: one file, or the newest stretch of a folder of segments."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from adaptive_kv.errors import TraceError
from adaptive_kv.trace.header import Header, header_from_json
from adaptive_kv.trace.lines import Decoder
from adaptive_kv.trace.moment import Moment
from adaptive_kv.trace.segments import PATTERN

_DAMAGE = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Trace:
    """A header, and the files whose moments belong to it, oldest first."""

    header: Header
    files: tuple[Path, ...]

    def moments(self) -> Iterator[Moment]:
        """Every moment in order; `time_s` counts from the first file's beginning.

        A last line that was not written to its end is left out. Raises `TraceError`.
        """
        for file in self.files:
            lines = _lines(file)
            began_s = _header(file, next(lines, "")).began_s
            ahead_s = round(began_s - self.header.began_s, 3)
            decoder = Decoder()
            for number, line in enumerate(lines, start=2):
                try:
                    moment = decoder.moment(line)
                except _DAMAGE as error:
                    raise TraceError(file, f"line {number} is damaged: {error!r}") from error
                yield replace(moment, time_s=moment.time_s + ahead_s) if ahead_s else moment


def read_trace(path: Path) -> Trace:
    """The trace in a file, or the newest in a folder: all segments recorded alike, to the last.

    Raises `TraceError`.
    """
    if not path.is_dir():
        return Trace(_header(path, next(_lines(path), "")), (path,))
    files = [file for file in sorted(path.glob(PATTERN)) if next(_lines(file), None) is not None]
    if not files:
        raise TraceError(path, f"there is no file {PATTERN} in it; record one with trace.path")
    headers = [_header(file, next(_lines(file), "")) for file in files]
    first = len(files) - 1
    while first and replace(headers[first - 1], began_s=headers[-1].began_s) == headers[-1]:
        first -= 1
    return Trace(headers[first], tuple(files[first:]))


def _header(file: Path, line: str) -> Header:
    try:
        return header_from_json(line)
    except _DAMAGE as error:
        raise TraceError(file, f"this is no trace: {error}") from error


def _lines(file: Path) -> Iterator[str]:
    """The whole lines of a file, packed or not, as far as they were written."""
    try:
        with file.open("rb") as raw:
            is_packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file, "rb") if is_packed else file.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                yield line.decode("utf-8", "replace")
    except (EOFError, zlib.error):
        return
    except gzip.BadGzipFile as error:
        raise TraceError(file, f"this is no trace: {error}") from error
    except OSError as error:
        raise TraceError(file, f"cannot be read: {error.strerror}") from error
