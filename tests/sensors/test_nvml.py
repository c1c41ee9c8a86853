import ctypes

import pytest

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.nvml import NvmlSensor


def has_driver() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def test_what_cannot_be_found_is_a_clear_error_every_time() -> None:
    sensor = NvmlSensor("GPU-00000000-0000-0000-0000-000000000000")
    why = "Not Found|Not Supported|Invalid" if has_driver() else "libnvidia-ml is not installed"
    for _ in range(2):
        with pytest.raises(SensorError, match=why) as caught:
            sensor.read()
        assert caught.value.source == "nvml"
    sensor.close()


@pytest.mark.gpu
def test_a_gpu_states_its_memory_again_after_closing() -> None:
    sensor = NvmlSensor()
    for _ in range(2):
        sample = sensor.read()
        assert 0 < sample.free_bytes <= sample.total_bytes
        sensor.close()
