"""From the configuration to the chain of sensors to ask, the best one first."""

from collections.abc import Callable
from pathlib import Path

from adaptive_kv.config import MemorySettings
from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import Sensor
from adaptive_kv.sensors.budget import BudgetSensor
from adaptive_kv.sensors.cuda import CudaSensor, shares_host_memory, uuid_of
from adaptive_kv.sensors.file import FileSensor
from adaptive_kv.sensors.meminfo import MeminfoSensor
from adaptive_kv.sensors.nvml import NvmlSensor


def make_sensors(
    memory: MemorySettings, device: str, used_bytes: Callable[[], int]
) -> tuple[Sensor, ...]:
    """The sensors that `memory.source` asks for, for `device` (`cpu`, `cuda` or `cuda:N`).

    A named source stands alone: another one would tell another truth. `auto` is a chain; with a
    budget, each of its sensors is seen through the budget. `used_bytes` is what this process
    uses of a budget. Raises `SensorError` for a source that this version cannot read.
    """
    index = int(device.partition(":")[2] or 0)
    is_cuda = device.startswith("cuda")
    match memory.source:
        case "auto":
            chain = _of_gpu(index) if is_cuda else (MeminfoSensor(),)
            return chain if memory.budget is None else _within(memory.budget, used_bytes, chain)
        case "budget":
            assert memory.budget is not None, "checked with the configuration"
            return (BudgetSensor(memory.budget, used_bytes),)
        case "nvml":
            return (NvmlSensor(uuid_of(index) if is_cuda else None),)
        case "cuda":
            return (CudaSensor(index),)
        case "meminfo":
            return (MeminfoSensor(),)
        case source if source.startswith("file:"):
            return (FileSensor(Path(source.removeprefix("file:")), max_age_s=memory.max_age_s),)
        case source:
            raise SensorError(source, "not available in this version; use auto or meminfo")


def _of_gpu(index: int) -> tuple[Sensor, ...]:
    if shares_host_memory(index):
        return (MeminfoSensor(),)
    return (NvmlSensor(uuid_of(index)), CudaSensor(index), MeminfoSensor())


def _within(
    budget_bytes: int, used_bytes: Callable[[], int], chain: tuple[Sensor, ...]
) -> tuple[Sensor, ...]:
    return tuple(BudgetSensor(budget_bytes, used_bytes, within=sensor) for sensor in chain)
