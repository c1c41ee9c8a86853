"""Temperature, power, utilization and throttling of an NVIDIA GPU."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.base import DeviceSample
from adaptive_kv.sensors.nvml import NAME, NvmlGpu, pynvml

# New names first: the old ones go away with CUDA 14, and old drivers do not have the new ones.
_TEMPERATURE = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
_POWER = ("nvmlDeviceGetPowerUsage",)
_UTILIZATION = ("nvmlDeviceGetUtilizationRates",)

# Idle clocks and clocks that somebody set are no throttling.
_THROTTLING = {
    0x04: "power_cap",
    0x08: "hardware_slowdown",
    0x20: "heat",
    0x40: "hardware_heat",
    0x80: "power_brake",
}

# What ends every call until the driver is opened again; anything else concerns one value alone.
_OVER = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)


class NvmlTelemetry:
    """Asks the board, once a second; shares the `NvmlGpu` with the sensor of its memory."""

    name = NAME
    period_s = 1.0

    def __init__(self, gpu: NvmlGpu) -> None:
        self._gpu = gpu

    def read(self, before: DeviceSample) -> DeviceSample:
        """`before` with what the GPU says of itself now, None where it does not say."""
        values: tuple[Any, ...]
        try:
            values = self._gpu.ask_board(_values)
        except SensorError:  # told by the sensor of its memory, where that matters
            values = (None, None, None, None)
        temperature, milliwatts, rates, reasons = values
        return replace(
            before,
            time_s=time.monotonic(),
            temperature_c=None if temperature is None else float(temperature),
            power_w=None if milliwatts is None else milliwatts / 1000,
            utilization=None if rates is None else rates.gpu / 100,
            throttle_reasons=None if reasons is None else _throttling(int(reasons)),
        )

    def close(self) -> None:
        """Let go of the driver."""
        self._gpu.close()


def _values(board: Any) -> tuple[Any, Any, Any, Any]:
    return (
        _value(_TEMPERATURE, lambda call: call(board, pynvml.NVML_TEMPERATURE_GPU)),
        _value(_POWER, lambda call: call(board)),
        _value(_UTILIZATION, lambda call: call(board)),
        _value(_REASONS, lambda call: call(board)),
    )


def _value(names: tuple[str, ...], ask: Callable[[Any], Any]) -> Any:
    """Answer of the first of these calls that bindings and driver both have, None if none says."""
    for name in names:
        call = getattr(pynvml, name, None)
        if call is None:
            continue
        try:
            return ask(call)
        except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_ArgumentVersionMismatch):
            continue
        except pynvml.NVMLError as error:
            if error.value in _OVER:
                raise
            return None
    return None


def _throttling(reasons: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _THROTTLING.items() if reasons & bit)
