import pytest
import torch

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.cuda import CudaSensor, uuid_of
from adaptive_kv.sensors.nvml import NvmlSensor


def test_without_such_a_device_reading_is_a_fault() -> None:
    why = None if torch.cuda.is_available() else "no CUDA device"
    with pytest.raises(SensorError, match=why):
        CudaSensor(torch.cuda.device_count()).read()


@pytest.mark.gpu
def test_the_runtime_and_the_driver_speak_of_the_same_device() -> None:
    cuda, nvml = CudaSensor(0).read(), NvmlSensor(uuid_of(0)).read()
    assert 0 < cuda.free_bytes <= cuda.total_bytes <= nvml.total_bytes
