"""One run of the child process in which a policy answers, and the line to it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

_COMMAND = (sys.executable, "-P", "-m", "adaptive_kv.loader.child")
_MAX_LINE_BYTES = 2**20
_KEPT_VARIABLES = {"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV"}
_KEPT_PREFIXES = ("LC_", "PYTHON")


class ChildError(Exception):
    """The child ended, was never there, or says what is no answer."""


class Child:
    """A child that loads `policy` with `options` and then answers line for line.

    A context manager: at the end the process, and whatever it started, is killed and gone. Only
    `hang_up` may be called from another thread. Raises `ChildError` where there can be none.
    """

    def __init__(self, policy: str, options: Mapping[str, Any], folder: Path) -> None:
        self._buffer = b""
        self._link, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _start(theirs.fileno())
            except OSError as error:
                self._link.close()
                raise ChildError(f"its process cannot be started: {error.strerror}") from error
        self._order = {"policy": policy, "options": dict(options), "folder": str(folder)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end()

    def load(self, limit_s: float) -> dict[str, Any]:
        """What it says once it has loaded its policy: `ready` or `refused`, and more."""
        self.send(json.dumps(self._order), limit_s)
        answer = self.receive(limit_s)
        if answer is None:
            raise ChildError(f"was not loaded within {limit_s:g} s")
        return answer

    def send(self, line: str, limit_s: float) -> None:
        """Hand over one line; `ChildError` if it is not taken within `limit_s`."""
        self._link.settimeout(limit_s)
        try:
            self._link.sendall(line.encode() + b"\n")
        except TimeoutError:
            raise ChildError(f"took no question within {limit_s:g} s") from None
        except OSError:
            raise ChildError(self._obituary()) from None

    def receive(self, limit_s: float) -> dict[str, Any] | None:
        """The next answer; None if there is none within `limit_s`: it may be asked for again."""
        until_s = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or not self._read(left_s):
                return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            raise ChildError("wrote garbage where answers go") from None
        if not isinstance(answer, dict):
            raise ChildError("wrote garbage where answers go")
        return answer

    def hang_up(self) -> None:
        """Let whatever waits for the child find it gone; any thread."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)

    def _read(self, limit_s: float) -> bool:
        """Whether something came within `limit_s`."""
        self._link.settimeout(limit_s)
        try:
            piece = self._link.recv(65536)
        except TimeoutError:
            return False
        except OSError:
            piece = b""
        if not piece:
            raise ChildError(self._obituary())
        self._buffer += piece
        if len(self._buffer) > _MAX_LINE_BYTES:
            raise ChildError(f"wrote a line of more than {_MAX_LINE_BYTES} bytes")
        return True

    def _obituary(self) -> str:
        """How it ended; it has by the time that this returns."""
        status = self._end()
        if status >= 0:
            return f"its process ended with status {status}"
        known = {each.value: each.name for each in signal.Signals}
        return f"its process was ended by {known.get(-status, f'signal {-status}')}"

    def _end(self) -> int:
        """Kill it and all it has started, wait until it is gone; its exit status."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._link.close()
        return self._process.returncode


def _start(fd: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(  # noqa: S603 - the command is ours
        [*_COMMAND, str(fd), str(os.getpid())],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    """Ours without secrets, and libraries told to be content with one thread."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
    }
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
