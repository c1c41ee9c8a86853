"""The test double of libnvidia-ml.so.1: how it is built, and the memory through which it is led."""

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent

GPU_0 = "GPU-00000000-0000-0000-0000-00000000000a"
GPU_1 = "GPU-11111111-1111-1111-1111-11111111111b"
MIG_0 = "MIG-22222222-2222-2222-2222-22222222222c"
MIG_1 = "MIG-33333333-3333-3333-3333-33333333333d"
BUS_0 = "00000000:01:00.0"
BUS_1 = "00000000:41:00.0"

SUCCESS, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 0, 3, 4, 6
DRIVER_NOT_LOADED, TIMEOUT, GPU_IS_LOST, MISMATCH, UNKNOWN = 9, 10, 15, 18, 999


class Place(ctypes.Structure):
    """`struct place` of nvml_stub.c: a GPU or a MIG instance."""

    uuid: bytes
    bus_id: bytes
    total_bytes: int
    free_bytes: int
    throttle_reasons: int
    temperature_c: int
    power_mw: int
    utilization_percent: int
    is_present: int
    _fields_ = [
        ("uuid", ctypes.c_char * 64),
        ("bus_id", ctypes.c_char * 32),
        ("total_bytes", ctypes.c_uint64),
        ("free_bytes", ctypes.c_uint64),
        ("throttle_reasons", ctypes.c_uint64),
        ("temperature_c", ctypes.c_uint32),
        ("power_mw", ctypes.c_uint32),
        ("utilization_percent", ctypes.c_uint32),
        ("is_present", ctypes.c_uint32),
    ]


class State(ctypes.Structure):
    """`struct state` of nvml_stub.c."""

    init_result: int
    find_result: int
    memory_result: int
    telemetry_result: int
    temperature_result: int
    shutdown_result: int
    is_split: int
    sees_board: int
    is_hanging: int
    num_hanging: int
    num_inits: int
    num_shutdowns: int
    num_memory: int
    num_telemetry: int
    num_forbidden: int
    places: ctypes.Array[Place]
    _fields_ = [
        ("init_result", ctypes.c_int32),
        ("find_result", ctypes.c_int32),
        ("memory_result", ctypes.c_int32),
        ("telemetry_result", ctypes.c_int32),
        ("temperature_result", ctypes.c_int32),
        ("shutdown_result", ctypes.c_int32),
        ("is_split", ctypes.c_uint32),
        ("sees_board", ctypes.c_uint32),
        ("is_hanging", ctypes.c_uint32),
        ("num_hanging", ctypes.c_uint32),
        ("num_inits", ctypes.c_uint64),
        ("num_shutdowns", ctypes.c_uint64),
        ("num_memory", ctypes.c_uint64),
        ("num_telemetry", ctypes.c_uint64),
        ("num_forbidden", ctypes.c_uint64),
        ("places", Place * 4),
    ]


def build(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """Build the library into `folder`, which LD_LIBRARY_PATH may then name."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "these tests build a C library: install gcc"
    folder.mkdir(exist_ok=True)
    subprocess.run(
        [
            compiler,
            *("-w", "-O1", "-shared", "-fPIC"),  # a variant leaves helpers unused
            "-Wl,-soname,libnvidia-ml.so.1",
            *(f"-DWITHOUT_{name}" for name in without),
            *("-o", str(folder / "libnvidia-ml.so.1"), str(HERE / "nvml_stub.c")),
        ],
        check=True,
    )
    return folder


class Driver:
    """A process of its own with the real bindings on the stub, and the stub's state at hand.

    `state` is live: what is written there is what the driver answers from then on.
    """

    def __init__(self, library: Path, folder: Path, **environ: str) -> None:
        path = folder / "state"
        path.write_bytes(bytes(ctypes.sizeof(State)))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.state = State.from_buffer(self._memory)
        self.reset()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "nvml_child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(library),
                "NVML_STUB_STATE": str(path),
                **environ,
            },
        )

    def reset(self) -> None:
        """Two GPUs, neither split, and nothing amiss."""
        ctypes.memset(ctypes.addressof(self.state), 0, ctypes.sizeof(State))
        self._place(0, GPU_0, BUS_0, 8)
        self._place(1, GPU_1, BUS_1, 24)
        self.state.sees_board = 1

    def split(self, *uuids: str) -> None:
        """Split the first GPU into MIG instances."""
        self.state.is_split = 1
        for index, uuid in enumerate(uuids):
            self._place(2 + index, uuid, "", 2 + index)

    def do(self, verb: str, *arguments: object) -> Any:
        """What the process answers; see nvml_child.py for the verbs."""
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
        self.state.is_hanging = 0
        self._process.communicate()
        assert self._process.returncode == 0

    def _place(self, index: int, uuid: str, bus_id: str, gib: int) -> None:
        place = self.state.places[index]
        place.uuid, place.bus_id = uuid.encode(), bus_id.encode()
        place.total_bytes, place.free_bytes = gib * 2**30, gib * 2**29
        place.temperature_c, place.power_mw, place.utilization_percent = 45 + index, 15000, 30
        place.is_present = 1
