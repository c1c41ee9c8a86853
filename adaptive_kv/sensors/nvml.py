"""Memory of an NVIDIA GPU as its driver counts it, every process included."""

import importlib
from typing import Any

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import MemorySample, checked_sample

# The bindings are not annotated, and make their error classes while they are imported.
pynvml: Any = importlib.import_module("pynvml")


class NvmlSensor:
    """`nvmlDeviceGetMemoryInfo` of one GPU: 12 microseconds a read, memory only.

    `device` is a UUID (`GPU-...`, `MIG-...`) or a PCI bus id; never an index, because CUDA and
    NVML number devices differently. None is the only GPU of the box.
    """

    name = "nvml"

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self._handle: Any = None

    def read(self) -> MemorySample:
        """Measure now. Raises `SensorError`; the next read then starts afresh."""
        try:
            if self._handle is None:
                self._open()
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        except pynvml.NVMLError as error:
            self.close()
            raise SensorError(self.name, _why(error)) from error
        return checked_sample(self.name, int(memory.total), int(memory.free))

    def close(self) -> None:
        """Let go of the driver."""
        if self._handle is not None:
            self._handle = None
            _shut_down()

    def _open(self) -> None:
        pynvml.nvmlInit()
        try:
            self._handle = self._find()
        except BaseException:
            _shut_down()
            raise

    def _find(self) -> Any:
        if self._device is None:
            if pynvml.nvmlDeviceGetCount() != 1:
                raise SensorError(self.name, "there is not exactly one GPU; say which by its UUID")
            return pynvml.nvmlDeviceGetHandleByIndex(0)
        if self._device.startswith(("GPU-", "MIG-")):
            return pynvml.nvmlDeviceGetHandleByUUID(self._device)
        return pynvml.nvmlDeviceGetHandleByPciBusId(self._device)


def _shut_down() -> None:
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError_Uninitialized:
        return  # somebody else's shutdown came first; there is nothing left to let go of


def _why(error: Exception) -> str:
    if isinstance(error, pynvml.NVMLError_NotSupported):
        return "not supported by this GPU; where it shares the host's memory, use meminfo"
    if isinstance(error, pynvml.NVMLError_LibraryNotFound):
        return "the NVIDIA driver's library libnvidia-ml is not installed"
    return str(error)
