"""Where the control groups of this process are found."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Group:
    """The folder of the process's group and the mount that it is under."""

    path: Path
    mount: Path
    is_v1: bool

    def way_up(self) -> Iterator[Path]:
        """The folders of this group and of those around it, up to the mount."""
        path = self.path
        yield path
        while path != self.mount:
            path = path.parent
            yield path


def group_names(proc: Path = PROC) -> str:
    """The groups of this process as the kernel lists them; empty where there are none."""
    return _text(proc / "self" / "cgroup")


def memory_group(proc: Path = PROC) -> Group | None:
    """The group that accounts for this process's memory; None where there is none.

    Where both versions are mounted, memory belongs to version 1 if that has the controller.
    """
    return _group(proc, "memory") or _group(proc, "")


def unified_group(proc: Path = PROC) -> Group | None:
    """The group of this process in version 2; None where that is not mounted."""
    return _group(proc, "")


def _group(proc: Path, controller: str) -> Group | None:
    """The group in the hierarchy of a version 1 controller, or in version 2 for the empty name."""
    name = _group_name(proc, controller)
    if name is None:
        return None
    for root, mount in _mounts(proc, controller):
        if path := _folder(name, root, mount):
            return Group(path=path, mount=mount, is_v1=bool(controller))
    return None


def _group_name(proc: Path, controller: str) -> str | None:
    for line in group_names(proc).splitlines():
        _, _, told = line.partition(":")
        controllers, colon, name = told.partition(":")
        if colon and controller in controllers.split(","):
            return name
    return None


def _mounts(proc: Path, controller: str) -> Iterator[tuple[str, Path]]:
    """Root inside the hierarchy and mount point, of each mount of the hierarchy (see proc(5))."""
    for line in _text(proc / "self" / "mountinfo").splitlines():
        place, _, told = line.partition(" - ")
        kind, _, options = told.rpartition(" ")
        if controller:
            is_it = kind.startswith("cgroup ") and controller in options.split(",")
        else:
            is_it = kind.startswith("cgroup2 ")
        if is_it:
            root, mount = place.split(" ")[3:5]
            yield _unescaped(root), Path(_unescaped(mount))


def _folder(name: str, root: str, mount: Path) -> Path | None:
    """A container may see its group as the root, or by a name that only the host can follow."""
    group = PurePosixPath(name)
    inside = group.is_relative_to(root) and ".." not in group.parts
    path = mount / group.relative_to(root) if inside else mount
    for folder in (path, mount):
        if folder.is_dir():
            return folder
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""  # not Linux, or no procfs: no groups


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
