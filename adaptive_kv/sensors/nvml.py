"""Memory of an NVIDIA GPU as its driver counts it, every process included."""

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import MemorySample, checked_sample

# The bindings are not annotated, and make their error classes while they are imported.
pynvml: Any = importlib.import_module("pynvml")

NAME = "nvml"
REOPEN_S = 1.0
"""The driver is initialised at most this often: doing so holds a lock that all its users share."""

_WHY = {
    pynvml.NVML_ERROR_UNINITIALIZED: "somebody in this process shut the driver's library down",
    pynvml.NVML_ERROR_NO_PERMISSION: "not permitted; a container needs access to /dev/nvidiactl, "
    "and on a GPU split by MIG the instance must be named by its MIG- UUID",
    pynvml.NVML_ERROR_NOT_FOUND: "the driver knows no such GPU",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA kernel module is not loaded",
    pynvml.NVML_ERROR_TIMEOUT: "the driver timed out",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "the NVIDIA driver's library libnvidia-ml is not "
    "installed, or not for this architecture",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the driver's library lacks a function that is needed; "
    "the driver is too old",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU is lost: it fell off its bus; reset it or reboot",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU must be reset before it can be used again",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver's library and its kernel module differ "
    "in version; reboot, or reload the module",
    pynvml.NVML_ERROR_UNKNOWN: "the driver reports an unknown error",
}
_NOT_SUPPORTED = {
    True: "not told by this GPU, which shares the host's memory; use meminfo or auto",
    False: "not told by this GPU, which has memory of its own: a fault of its driver",
    None: "not told by this GPU; if it shares the host's memory use meminfo, else it is a fault",
}


class NvmlGpu:
    """One GPU, or one MIG instance, opened when it is asked and again after a fault.

    `names` are UUIDs (`GPU-...`, `MIG-...`) or PCI bus ids by which the device may be known, tried
    in turn; never an index, because CUDA and NVML number devices differently. No name is the only
    GPU of the box. `is_integrated` says whether it shares the host's memory, None if not known.
    Used by one thread at a time.
    """

    def __init__(self, names: Sequence[str] = (), *, is_integrated: bool | None = None) -> None:
        self._names = tuple(names)
        self._is_integrated = is_integrated
        self._handle: Any = None
        self._board: Any = None
        self._opened_s = float("-inf")
        self._why: str | None = None

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Answer of the GPU or MIG instance to a call of the bindings.

        Raises `SensorError` for any error of the driver; the next question then starts afresh.
        """
        return self._answer(lambda: question(self._handle))

    def ask_board(self, question: Callable[[Any], Any]) -> Any:
        """The same of the physical GPU, for what a MIG instance has not of its own."""
        return self._answer(lambda: question(self._board))

    def close(self) -> None:
        """Let go of the driver."""
        self._why = None
        self._let_go()

    def _answer(self, question: Callable[[], Any]) -> Any:
        try:
            if self._handle is None:
                self._open()
            return question()
        except pynvml.NVMLError as error:
            self._let_go()
            self._why = self._text(error)
            raise SensorError(NAME, self._why) from error

    def _open(self) -> None:
        now_s = time.monotonic()
        if self._why is not None and now_s < self._opened_s + REOPEN_S:
            raise SensorError(NAME, self._why)
        self._opened_s = now_s
        pynvml.nvmlInit()
        try:
            self._handle, self._board = _instance(self._find())
        except BaseException as error:
            self._why = error.why if isinstance(error, SensorError) else self._why
            _shut_down()
            raise

    def _find(self) -> Any:
        if not self._names:
            if (num_gpus := pynvml.nvmlDeviceGetCount()) != 1:
                raise SensorError(NAME, f"there are {num_gpus} GPUs; say which by its UUID")
            return pynvml.nvmlDeviceGetHandleByIndex(0)
        *others, last = self._names
        for name in others:
            try:
                return _handle_of(name)
            except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
                continue  # known by another name, perhaps
        return _handle_of(last)

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle = self._board = None
            _shut_down()

    def _text(self, error: Any) -> str:
        if error.value == pynvml.NVML_ERROR_NOT_SUPPORTED:
            return _NOT_SUPPORTED[self._is_integrated]
        why = _WHY.get(error.value, str(error))
        named = error.value == pynvml.NVML_ERROR_NOT_FOUND and self._names
        return f"{why}: {', '.join(self._names)}" if named else why


class NvmlSensor:
    """`nvmlDeviceGetMemoryInfo` of one GPU or MIG instance: memory only, never the process list.

    About 12 microseconds a read. `used` is not looked at: driver versions differ in whether it
    counts what the driver keeps for itself.
    """

    name = NAME

    def __init__(self, gpu: NvmlGpu) -> None:
        self._gpu = gpu

    def read(self) -> MemorySample:
        """Measure now. Raises `SensorError`; a later read then starts afresh."""
        memory = self._gpu.ask(pynvml.nvmlDeviceGetMemoryInfo)
        return checked_sample(self.name, int(memory.total), int(memory.free))

    def close(self) -> None:
        """Let go of the driver."""
        self._gpu.close()


def _handle_of(name: str) -> Any:
    if name.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByUUID(name)
    return pynvml.nvmlDeviceGetHandleByPciBusId(name)


def _instance(handle: Any) -> tuple[Any, Any]:
    """The device whose memory counts and the board it is on: different where MIG splits it."""
    try:
        if pynvml.nvmlDeviceIsMigDeviceHandle(handle).value:
            return handle, _board_of(handle)
        is_split, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return handle, handle  # from before there was MIG
    except pynvml.NVMLError_NoPermission:
        return handle, handle  # if it matters, asking for its memory says so
    return (_only_instance(handle), handle) if is_split else (handle, handle)


def _board_of(instance: Any) -> Any:
    try:
        return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)
    except pynvml.NVMLError_NoPermission:
        return instance  # a container may see nothing but its instance


def _only_instance(board: Any) -> Any:
    instances = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(board)):
        try:
            instances.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, index))
        except pynvml.NVMLError_NotFound:
            continue  # a place where no instance was made
    if len(instances) != 1:
        why = f"the GPU is split into {len(instances)} MIG instances; say which by its MIG- UUID"
        raise SensorError(NAME, why)
    return instances[0]


def _shut_down() -> None:
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return  # shut down by somebody else, or lost: there is nothing left to let go of
