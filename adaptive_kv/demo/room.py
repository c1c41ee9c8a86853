"""How much memory the demonstration plays with, so that it fits the machine and never harms it.

From the top of what is available now: what the service needs without its cache, the headroom that
its cache gets at first, slack that evens out what other processes take meanwhile; what is below
stays free, and is the floor that service and squeeze both keep.
"""

from dataclasses import dataclass
from pathlib import Path

from adaptive_kv.errors import AdaptiveKVError
from adaptive_kv.sensors.base import MemorySample

MIB = 2**20
SERVICE_BYTES = 768 * MIB
"""Bound of what the service needs besides its cache: libraries, weights, activations."""
HEADROOM_BYTES = 640 * MIB
"""Left to the cache while nobody squeezes: several times what its sequences need in `full`."""
_MAX_SLACK_BYTES = 2048 * MIB
_MAX_HELD_BYTES = 6 * 1024 * MIB
_MIN_FLOOR_BYTES = 512 * MIB
_FLOOR_SHARE = 10
"""The floor is at least one part of so many of the whole memory."""


class TooSmallError(AdaptiveKVError):
    """This machine has too little memory left for the demonstration."""

    def __init__(self, usable_bytes: int, needed_bytes: int) -> None:
        super().__init__(
            f"the demo needs {needed_bytes // MIB} MiB of memory, and can take only "
            f"{max(0, usable_bytes) // MIB} MiB safely; end something and try again"
        )
        self.usable_bytes = usable_bytes
        self.needed_bytes = needed_bytes


@dataclass(frozen=True, slots=True)
class Room:
    """The plan for one run, in bytes."""

    floor_bytes: int
    most_bytes: int
    """That the squeeze may hold."""


def plan_room(sample: MemorySample, limit_bytes: int | None = None) -> Room:
    """The plan for a device as it is now; `limit_bytes` is what we may use of it at most.

    Raises `TooSmallError`.
    """
    safe_bytes = max(_MIN_FLOOR_BYTES, sample.total_bytes // _FLOOR_SHARE)
    needed_bytes = SERVICE_BYTES + HEADROOM_BYTES
    usable_bytes = sample.free_bytes - safe_bytes
    if limit_bytes is not None:
        usable_bytes = min(usable_bytes, limit_bytes)
    if usable_bytes < needed_bytes:
        raise TooSmallError(usable_bytes, needed_bytes)
    slack_bytes = min(_MAX_SLACK_BYTES, (usable_bytes - needed_bytes) // 4)
    return Room(
        floor_bytes=sample.free_bytes - needed_bytes - slack_bytes,
        most_bytes=min(_MAX_HELD_BYTES, usable_bytes - SERVICE_BYTES),
    )


def cgroup_room_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group of this process still allows; None where it sets no limit.

    A container sees its own group at the root, as version 2 or version 1.
    """
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit_text, used_bytes = (root / limit).read_text(), int((root / usage).read_text())
        except (OSError, ValueError):
            continue
        is_limited = limit_text.strip().isdigit() and int(limit_text) < 2**60
        return int(limit_text) - used_bytes if is_limited else None
    return None
