"""Real control groups with a memory limit, and processes put under it."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from adaptive_kv.sensors.groups import Group, memory_group

HERE = Path(__file__).parent


@contextmanager
def limited(limit_bytes: int, within: Path | None = None) -> Iterator[Path]:
    """A group of this machine's kernel with a limit, gone afterwards; skips where none can be made.

    It is made inside our own group, or `within` another; in version 2, where a group with processes
    cannot have children that account for memory, beside our own.
    """
    own = memory_group()
    if own is None:
        pytest.skip("no control group accounts for memory on this machine")
    path = (within or _parent(own)) / f"adaptive-kv-{uuid.uuid4().hex}"
    try:
        if not own.is_v1:
            (path.parent / "cgroup.subtree_control").write_text("+memory")
        path.mkdir()
    except OSError as error:
        pytest.skip(f"may not make a control group, run as root: {error}")
    try:
        name = "memory.limit_in_bytes" if own.is_v1 else "memory.max"
        (path / name).write_text(str(limit_bytes))
        yield path
    finally:
        path.rmdir()


def _parent(own: Group) -> Path:
    return own.path if own.is_v1 or own.path == own.mount else own.path.parent


class Tenant:
    """A process in a group, told to read sensors and to use memory; see limits_child.py."""

    def __init__(self, group: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "limits_child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.move(group)

    def move(self, group: Path) -> None:
        """Put the process under another group."""
        (group / "cgroup.procs").write_text(str(self._process.pid))

    def do(self, verb: str, *arguments: object) -> Any:
        """What the process answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process ended with status {self._process.wait()}"
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0
