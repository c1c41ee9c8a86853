"""From the configuration to the chain of sensors to ask, the best one first."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adaptive_kv.config import MemorySettings
from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import Sensor, Telemetry
from adaptive_kv.sensors.budget import BudgetSensor
from adaptive_kv.sensors.cgroup import CgroupSensor
from adaptive_kv.sensors.cuda import CudaSensor, names_of, reusable_bytes, shares_host_memory
from adaptive_kv.sensors.file import FileSensor
from adaptive_kv.sensors.headroom import HeadroomSensor
from adaptive_kv.sensors.host import HostSensor
from adaptive_kv.sensors.meminfo import MeminfoSensor
from adaptive_kv.sensors.nvml import NvmlGpu, NvmlSensor
from adaptive_kv.sensors.nvml_telemetry import NvmlTelemetry
from adaptive_kv.sensors.pressure import PressureTelemetry


@dataclass(frozen=True, slots=True)
class Sources:
    """What a `SensorPoller` asks: a chain for memory, and all there is about the device."""

    sensors: tuple[Sensor, ...]
    telemetry: tuple[Telemetry, ...]


def make_sources(memory: MemorySettings, device: str, used_bytes: Callable[[], int]) -> Sources:
    """What `memory.source` asks for, for `device` (`cpu`, `cuda` or `cuda:N`).

    A named source stands alone: another one would tell another truth. `auto` is a chain; with a
    budget, each of its sensors is seen through the budget. `used_bytes` is what this process
    uses of a budget.

    `auto` goes by what a device is and what answers, not by its name. A GPU with memory of its own:
    its driver, then its runtime; never the host, whose memory is not the GPU's. A GPU that shares
    the host's memory: the host, since driver and runtime then say nothing, or count the page cache
    as used. A CPU: the host, or a control group that leaves less. Raises `SensorError` where it
    finds no such device.
    """
    is_cuda = device.startswith("cuda")
    index = int(device.partition(":")[2] or 0)
    gpu = _gpu(index) if is_cuda else NvmlGpu()
    sensors = _sensors(memory, index if is_cuda else None, gpu, used_bytes)
    on_gpu = (NvmlTelemetry(gpu),) if is_cuda or memory.source == "nvml" else ()
    return Sources(sensors, (*on_gpu, PressureTelemetry()))


def make_sensors(
    memory: MemorySettings, device: str, used_bytes: Callable[[], int]
) -> tuple[Sensor, ...]:
    """The memory sensors of `make_sources` alone."""
    return make_sources(memory, device, used_bytes).sensors


def gpu_chain(gpu: NvmlGpu, index: int, *, is_integrated: bool) -> tuple[Sensor, ...]:
    """Who tells the memory of CUDA device `index`, which NVML knows as `gpu`."""
    if is_integrated:
        return _with_reusable(index, MeminfoSensor())
    return _with_reusable(index, NvmlSensor(gpu), CudaSensor(index))


def _sensors(
    memory: MemorySettings, index: int | None, gpu: NvmlGpu, used_bytes: Callable[[], int]
) -> tuple[Sensor, ...]:
    """`index` is the CUDA device's, None on a CPU."""
    named: Sensor
    match memory.source:
        case "auto":
            chain = _auto(index, gpu)
            return chain if memory.budget is None else _within(memory.budget, used_bytes, chain)
        case "budget":
            assert memory.budget is not None, "checked with the configuration"
            return (BudgetSensor(memory.budget, used_bytes),)
        case "nvml":
            named = NvmlSensor(gpu)
        case "cuda":
            named = CudaSensor(index or 0)
        case "meminfo":
            named = MeminfoSensor()
        case "cgroup":
            return (CgroupSensor(),)
        case source:
            path = Path(source.removeprefix("file:"))
            return (FileSensor(path, max_age_s=memory.max_age_s),)
    return _with_reusable(index, named)


def _auto(index: int | None, gpu: NvmlGpu) -> tuple[Sensor, ...]:
    if index is None:
        return (HostSensor(),)
    return gpu_chain(gpu, index, is_integrated=shares_host_memory(index))


def _gpu(index: int) -> NvmlGpu:
    try:
        return NvmlGpu(names_of(index), is_integrated=shares_host_memory(index))
    except SensorError:
        return NvmlGpu()  # whoever needs CUDA says that it is not there


def _with_reusable(index: int | None, *chain: Sensor) -> tuple[Sensor, ...]:
    if index is None:
        return chain
    return tuple(HeadroomSensor(sensor, partial(reusable_bytes, index)) for sensor in chain)


def _within(
    budget_bytes: int, used_bytes: Callable[[], int], chain: tuple[Sensor, ...]
) -> tuple[Sensor, ...]:
    return tuple(BudgetSensor(budget_bytes, used_bytes, within=sensor) for sensor in chain)
