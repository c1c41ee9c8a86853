"""Stopping one thread of a process, by ptrace, while all others run on."""

import ctypes
import os
from pathlib import Path

from boot.box import stream

_CONT, _SEIZE, _INTERRUPT, _WALL = 7, 0x4206, 0x4207, 0x40000000


def busiest_thread(pid: str) -> int:
    """The worker's: the one that computes while an answer is made, and is not the first."""
    before = _cpu_times(pid)
    with stream(200) as chunks:
        for _ in chunks:
            pass
    after = _cpu_times(pid)
    del after[int(pid)]
    spent = {thread: after[thread] - before.get(thread, 0) for thread in after}
    return max(spent, key=lambda thread: spent[thread])


def _cpu_times(pid: str) -> dict[int, int]:
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        found[int(task.name)] = int(fields[11]) + int(fields[12])
    return found


class Freezer:
    """Holds one thread. Whoever made it must wait for the thread's end, or its process stays."""

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self._ptrace(_SEIZE)

    def stop(self) -> None:
        self._ptrace(_INTERRUPT)
        os.waitpid(self.thread, _WALL)

    def go_on(self) -> None:
        self._ptrace(_CONT)

    def wait_for_the_end(self) -> None:
        os.waitpid(self.thread, _WALL)

    def _ptrace(self, request: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        if libc.ptrace(request, self.thread, None, None) == -1:
            raise OSError(ctypes.get_errno(), f"ptrace {request:#x} {self.thread}")
