"""Records while the service works: the worker hands over, a thread of its own writes."""

import queue
import threading
from pathlib import Path

import structlog

from adaptive_kv.controller import Orders
from adaptive_kv.policy import Reading
from adaptive_kv.trace.header import Header
from adaptive_kv.trace.lines import Encoder, Numbers, moment_of
from adaptive_kv.trace.segments import Segments

MOVED_SHARE = 0.01
"""Memory that moved by this much of what lies above the floor is worth a moment of its own."""
MIN_PERIOD_S = 0.1
"""Between two moments for which only memory has moved."""

_QUEUE_SIZE = 256
_IDLE_S = 1.0
_CLOSE_S = 5.0
_log = structlog.get_logger(__name__)

_Item = tuple[Reading, Orders]


class Recorder:
    """Keeps `hz` moments a second of what `note` is shown, and every one at which things change.

    Nobody who calls `note` waits for the disk, nor for the cost table: what the thread cannot
    take is dropped and counted. A disk that fails ends the recording, nothing else.
    """

    def __init__(self, folder: Path, header: Header, *, max_bytes: int, hz: float) -> None:
        """Begin. Raises `OSError` where the folder cannot be written to."""
        self.num_dropped = 0
        """Moments that came faster than they could be written."""
        self._period_s = 1 / hz
        self._last: object = None
        self._last_s = float("-inf")
        self._last_others_bytes = 0
        self._start_s: float | None = None
        self._numbers = Numbers()
        self._queue: queue.Queue[_Item | None] = queue.Queue(_QUEUE_SIZE)
        self._segments = Segments(folder, header.to_json(), max_bytes)
        self._encoder = Encoder()
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def note(self, reading: Reading, orders: Orders) -> None:
        """Keep this moment if it is due; waits for nothing."""
        if not self._is_due(reading, orders):
            return
        try:
            self._queue.put_nowait((reading, orders))
        except queue.Full:
            self.num_dropped += 1

    @property
    def num_queued(self) -> int:
        """Moments that wait to be written."""
        return self._queue.qsize()

    def close(self) -> None:
        """Write what is left and end; waits a few seconds at most."""
        try:
            self._queue.put(None, timeout=_CLOSE_S)
        except queue.Full:
            return
        self._thread.join(_CLOSE_S)

    def _is_due(self, reading: Reading, orders: Orders) -> bool:
        memory = reading.memory
        places = [(sequence.id, sequence.mode) for sequence in reading.sequences]
        now = (orders.mode, orders.admit, orders.reason_code, reading.load.waiting, places)
        passed_s = reading.time_s - self._last_s
        others_bytes = memory.free_bytes + memory.cache_bytes
        moved_bytes = abs(others_bytes - self._last_others_bytes)
        is_due = now != self._last or passed_s >= self._period_s
        if not is_due and passed_s >= MIN_PERIOD_S:
            is_due = moved_bytes > MOVED_SHARE * (memory.total_bytes - memory.floor_bytes)
        if is_due:
            self._last, self._last_s, self._last_others_bytes = now, reading.time_s, others_bytes
        return is_due

    def _run(self) -> None:
        try:
            self._write_all()
        except OSError as error:
            _log.warning("trace_failed", error=str(error))

    def _write_all(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                self._segments.flush()
                continue
            if item is None:
                self._segments.close()
                return
            self._write(*item)

    def _write(self, reading: Reading, orders: Orders) -> None:
        if self._segments.is_full:
            self._segments.begin()
            self._encoder = Encoder()
        if self._start_s is None:
            self._start_s = reading.time_s
        moment = moment_of(reading, orders, self._start_s, self._numbers)
        self._segments.write(self._encoder.line(moment))
