"""What the control groups of this process leave it of the host's memory."""

from collections.abc import Iterator
from pathlib import Path

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import MemorySample, checked_sample
from adaptive_kv.sensors.groups import PROC, Group, group_names, memory_group

NAME = "cgroup"

# Version 1 writes "no limit" as the largest number of pages that it can count.
_UNLIMITED_BYTES = 2**62


class CgroupSensor:
    """The tightest limit on the way from the process's own group up to the root.

    Version 2: `memory.high` or `memory.max`, whichever is less, against `memory.current`;
    version 1: `memory.limit_in_bytes` against `memory.usage_in_bytes`. Page cache that the kernel
    would drop first (`inactive_file`) does not count as used. `proc` is where procfs is.
    """

    name = NAME

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._found: tuple[str, Group | None] | None = None

    def read(self) -> MemorySample:
        """Measure now. Raises `SensorError`, also where no limit is set."""
        sample = self.read_limit()
        if sample is None:
            why = "no memory limit is set for this process; set MemoryMax=, or use meminfo or auto"
            raise SensorError(self.name, why)
        return sample

    def read_limit(self) -> MemorySample | None:
        """Measure now; None where no limit is set. Raises `SensorError`."""
        group = self._group()
        if group is None:
            return None
        try:
            limits = tuple(_limits_v1(group) if group.is_v1 else _limits_v2(group))
        except (OSError, ValueError) as error:
            self._found = None
            raise SensorError(self.name, f"cannot read {group.path}: {error}") from error
        if not limits:
            return None
        free_bytes, limit_bytes = min(limits)
        return checked_sample(self.name, limit_bytes, free_bytes)

    def close(self) -> None:
        """Forget where the group is."""
        self._found = None

    def _group(self) -> Group | None:
        """Looked for again only when this process was moved: mounts are slow to go through."""
        names = group_names(self._proc)
        if self._found is None or self._found[0] != names:
            self._found = names, memory_group(self._proc)
        return self._found[1]


def _limits_v2(group: Group) -> Iterator[tuple[int, int]]:
    """Bytes free and the limit, of every group on the way up that has one."""
    for path in group.way_up():
        if not (path / "memory.max").exists():
            continue  # the root, or a part of the tree that is not accounted
        limits = [_text(path / name) for name in ("memory.high", "memory.max")]
        limit_bytes = min((int(limit) for limit in limits if limit != "max"), default=None)
        if limit_bytes is not None:
            used_bytes = int(_text(path / "memory.current")) - _stat(path, "inactive_file")
            yield _free(limit_bytes, used_bytes), limit_bytes


def _limits_v1(group: Group) -> Iterator[tuple[int, int]]:
    for path in group.way_up():
        if path != group.path and _text(path / "memory.use_hierarchy") == "0":
            return  # it does not count what its children use
        limit_bytes = int(_text(path / "memory.limit_in_bytes"))
        if limit_bytes < _UNLIMITED_BYTES:
            usage_bytes = int(_text(path / "memory.usage_in_bytes"))
            used_bytes = usage_bytes - _stat(path, "total_inactive_file")
            yield _free(limit_bytes, used_bytes), limit_bytes


def _free(limit_bytes: int, used_bytes: int) -> int:
    return min(limit_bytes, max(0, limit_bytes - max(0, used_bytes)))


def _stat(path: Path, key: str) -> int:
    for line in _text(path / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _text(path: Path) -> str:
    return path.read_text("ascii").strip()
