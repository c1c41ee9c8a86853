"""The process in which somebody else's policy runs: `python -m adaptive_kv.loader.child`.

It reads readings and writes answers, a line of JSON each, on the socket that it is handed. Its
memory is limited, it is the first that the kernel ends when memory runs out, and it ends with its
parent. What a policy prints goes nowhere.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from adaptive_kv.errors import PolicyError
from adaptive_kv.loader.finding import load_policy
from adaptive_kv.loader.wire import decision_values, reading_from_json
from adaptive_kv.policy import Policy

MAX_MEMORY_BYTES = 512 * 2**20
"""Address space of a policy: a few libraries fit, a leak does not."""

_MAX_FILES = 64
_MAX_ERROR_CHARS = 1000
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve the socket whose number is the first argument, for the parent that is the second."""
    fd, parent = map(int, sys.argv[1:])
    _end_with(parent)
    _limit()
    link = socket.socket(fileno=fd)
    status = 1
    try:
        status = _serve(cast("BinaryIO", link.makefile("rwb")))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(status)  # the link ends with the process, not before it


def _serve(stream: BinaryIO) -> int:
    """Load the policy that the first line names, answer all others; the exit status."""
    lines = iter(stream.readline, b"")
    policy = _load(json.loads(next(lines)))
    if isinstance(policy, str):
        _write(stream, {"refused": policy})
        return 1
    name, decide = policy
    _write(stream, {"ready": name})
    for line in lines:
        stream.write(_answer(decide, line) + b"\n")
        stream.flush()
    return 0


def _write(stream: BinaryIO, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _load(order: dict[str, Any]) -> tuple[str, Policy] | str:
    """The policy and its name, or why there is none."""
    try:
        policy, name = load_policy(order["policy"], order["options"], folder=Path(order["folder"]))
    except PolicyError as error:
        return error.why
    return name, policy


def _answer(decide: Policy, line: bytes) -> bytes:
    """What the policy decides, or what is wrong with that, as JSON."""
    reading = reading_from_json(line)
    try:
        decision = decide(reading)
        values = None if decision is None else decision_values(decision)
        return json.dumps({"decision": values}).encode()
    except Exception as error:  # noqa: BLE001 - a policy may raise or answer anything
        told = " ".join("".join(traceback.format_exception_only(error)).split())
        return json.dumps({"fault": told[:_MAX_ERROR_CHARS]}).encode()


def _end_with(parent: int) -> None:
    """Be killed by the kernel when the parent ends, or end now if it has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def _limit() -> None:
    """Take little: memory, files, processor time, and no core file."""
    limits = {
        resource.RLIMIT_AS: MAX_MEMORY_BYTES,
        resource.RLIMIT_NOFILE: _MAX_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for what, limit in limits.items():
        _, hard = resource.getrlimit(what)
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (allowed, allowed))
    os.nice(10)
    with suppress(OSError):  # /proc may be read-only
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
