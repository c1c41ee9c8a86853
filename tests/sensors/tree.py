"""Files laid out as a kernel lays out procfs and control groups, for kernels that are not here."""

from collections.abc import Mapping
from pathlib import Path


def write(folder: Path, files: Mapping[str, object]) -> Path:
    """Write these files below `folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return folder


def procfs(folder: Path, groups: str, *mounts: tuple[str, Path, str, str]) -> Path:
    """A procfs that says in which groups we are and where (root, mount, kind, options) they are."""
    lines = [
        f"{30 + index} 23 0:{index} {root} {mount} rw,nosuid - {kind} {kind} {options}"
        for index, (root, mount, kind, options) in enumerate(mounts)
    ]
    return write(
        folder / "proc",
        {
            "self/cgroup": groups,
            "self/mountinfo": "\n".join(["22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw", *lines]),
            "meminfo": "MemTotal: 1000 kB\nMemAvailable: 600 kB",
        },
    )


def group_v2(
    name: str,
    current: int,
    inactive: int = 0,
    high: int | str = "max",
    limit: int | str = "max",
) -> dict[str, object]:
    """The files of a version 2 group below its mount."""
    return {
        f"{name}/memory.current": current,
        f"{name}/memory.high": high,
        f"{name}/memory.max": limit,
        f"{name}/memory.stat": f"anon 5\nfile 9\ninactive_file {inactive}\nslab 1",
    }


def group_v1(
    name: str, usage: int, inactive: int, limit: int, hierarchy: int = 1
) -> dict[str, object]:
    """The files of a version 1 group below its mount."""
    return {
        f"{name}/memory.usage_in_bytes": usage,
        f"{name}/memory.limit_in_bytes": limit,
        f"{name}/memory.use_hierarchy": hierarchy,
        f"{name}/memory.stat": f"cache 3\ninactive_file 1\ntotal_inactive_file {inactive}",
    }
