"""The second process: takes memory from the device in a closed loop, and gives it back.

`python -m adaptive_kv.demo.squeeze` reads orders, one JSON object per line, from stdin:
`{"leave_bytes": n, "cache_bytes": n}` leaves so much to a service whose cache is so large. It tells
what it holds on stdout, one JSON object per line, and ends with its stdin, however its parent ends.

What the service itself takes or gives back is not answered: the loop watches what everybody *else*
leaves to it. So other processes of a busy machine are evened out, and the service is really left
alone with its share. It never takes what would break the floor, nor more than `--most`.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adaptive_kv.config import MemorySettings
from adaptive_kv.demo.ballast import CHUNK_BYTES, CudaMemory, HostMemory, Memory
from adaptive_kv.sensors.base import Sensor
from adaptive_kv.sensors.choose import make_sensors

_PERIOD_S = 0.05
_MAX_TAKEN_PER_PERIOD_BYTES = 96 * 2**20
_DIE_FIRST = "1000"
"""`oom_score_adj`: should the machine run out of memory after all, this process is its victim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """One look at the memory that the service shares with everybody else."""

    free_bytes: int
    used_bytes: int
    """By the service, beyond what it used when the squeeze began."""
    held_bytes: int


@dataclass(slots=True, kw_only=True)
class Regulator:
    """Says how much to take (positive) or give back (negative) next."""

    floor_bytes: int
    most_bytes: int
    is_blind: bool = False
    """What the service uses is only known when an order comes: carry it out once, then hold."""
    leave_bytes: int | None = None
    """For the service, above the floor; None holds nothing."""
    is_done: bool = False

    def order(self, leave_bytes: int) -> None:
        """Leave so much to the service from now on."""
        self.leave_bytes, self.is_done = leave_bytes, False

    def left_bytes(self, now: Watch) -> int:
        """What everybody but the service leaves to it above the floor."""
        return now.free_bytes - self.floor_bytes + now.used_bytes

    def change_bytes(self, now: Watch) -> int:
        """The next change; less than a chunk means none."""
        if self.leave_bytes is None:
            return -now.held_bytes
        surplus_bytes = self.left_bytes(now) - self.leave_bytes
        self.is_done |= self.is_blind and abs(surplus_bytes) < CHUNK_BYTES
        if self.is_done:
            return 0
        if surplus_bytes < 0:
            return -min(now.held_bytes, -surplus_bytes)
        above_floor_bytes = now.free_bytes - self.floor_bytes - CHUNK_BYTES
        room_bytes = min(above_floor_bytes, self.most_bytes - now.held_bytes)
        return max(0, min(surplus_bytes, room_bytes, _MAX_TAKEN_PER_PERIOD_BYTES))


def used_bytes(pid: int) -> int:
    """Memory of a process that nobody else could have; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except OSError:
        return 0
    fields = dict(line.partition(":")[::2] for line in lines)
    return sum(int(fields.get(key, "0").split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


class Squeeze:
    """The loop: watch, change, tell."""

    def __init__(
        self,
        memory: Memory,
        sensor: Sensor,
        regulator: Regulator,
        service_bytes: Callable[[], int],
    ) -> None:
        self.regulator = regulator
        self._memory = memory
        self._sensor = sensor
        self._service_bytes = service_bytes
        self._base_bytes = service_bytes()

    def watch(self) -> Watch:
        """Look now."""
        return Watch(
            free_bytes=self._sensor.read().free_bytes,
            used_bytes=self._service_bytes() - self._base_bytes,
            held_bytes=self._memory.num_chunks * CHUNK_BYTES,
        )

    def step(self) -> Watch:
        """Look, and take or give whole chunks; returns what was seen before."""
        now = self.watch()
        num_chunks, rest = divmod(
            abs(change_bytes := self.regulator.change_bytes(now)), CHUNK_BYTES
        )
        for _ in range(num_chunks if change_bytes > 0 else num_chunks + (rest > 0)):
            if change_bytes > 0:
                self._memory.take()
            elif self._memory.num_chunks:
                self._memory.give()
        return now

    def run(self, is_over: threading.Event) -> None:
        """Step until `is_over`, telling each time what was seen."""
        while not is_over.wait(_PERIOD_S):
            now = self.step()
            told = {
                "held_bytes": now.held_bytes,
                "left_bytes": self.regulator.left_bytes(now),
                "free_bytes": now.free_bytes,
                "time_s": time.monotonic(),
            }
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()


class _Orders:
    """Reads stdin in a thread of its own; `is_over` once that ends."""

    def __init__(self, regulator: Regulator) -> None:
        self.is_over = threading.Event()
        self.cache_bytes = 0
        self._regulator = regulator
        threading.Thread(target=self._obey, name="orders", daemon=True).start()

    def _obey(self) -> None:
        for line in sys.stdin:
            order = json.loads(line)
            self.cache_bytes = order["cache_bytes"]
            self._regulator.order(order["leave_bytes"])
        self.is_over.set()


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pid", type=int, required=True, help="the service")
    parser.add_argument("--floor", type=int, required=True, help="bytes that stay free")
    parser.add_argument("--most", type=int, required=True, help="bytes to hold at most")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    """Take and give until stdin ends."""
    asked = _parsed()
    (sensor, *_) = make_sensors(MemorySettings(), asked.device, lambda: 0)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_DIE_FIRST, "ascii")
    # What a process has of a GPU's own memory cannot be seen from within a container.
    is_host = sensor.name == "meminfo"
    regulator = Regulator(floor_bytes=asked.floor, most_bytes=asked.most, is_blind=not is_host)
    orders = _Orders(regulator)
    squeeze = Squeeze(
        HostMemory() if is_host else CudaMemory(),
        sensor,
        regulator,
        (lambda: used_bytes(asked.pid)) if is_host else (lambda: orders.cache_bytes),
    )
    with suppress(BrokenPipeError):
        squeeze.run(orders.is_over)


if __name__ == "__main__":
    main()
