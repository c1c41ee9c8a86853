import os
from collections.abc import Iterator

import pytest
import torch

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.cuda import CudaSensor, names_of, reusable_bytes, shares_host_memory
from adaptive_kv.sensors.nvml import NvmlGpu, NvmlSensor


def test_without_such_a_device_reading_is_a_fault() -> None:
    why = None if torch.cuda.is_available() else "no CUDA device"
    with pytest.raises(SensorError, match=why):
        CudaSensor(torch.cuda.device_count()).read()


def test_what_a_device_is_cannot_be_asked_where_it_is_not() -> None:
    absent = torch.cuda.device_count()
    for ask in (names_of, shares_host_memory):
        with pytest.raises(SensorError, match=f"no CUDA device {absent}"):
            ask(absent)


def test_an_allocator_that_was_never_used_holds_nothing() -> None:
    if not torch.cuda.is_initialized():
        assert reusable_bytes(0) == 0
    assert reusable_bytes(0) >= 0


@pytest.mark.gpu
def test_the_runtime_and_the_driver_speak_of_the_same_device() -> None:
    cuda, nvml = CudaSensor(0).read(), NvmlSensor(NvmlGpu(names_of(0))).read()
    assert 0 < cuda.free_bytes <= cuda.total_bytes <= nvml.total_bytes


@pytest.fixture
def visible() -> Iterator[None]:
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    yield
    os.environ.pop("CUDA_VISIBLE_DEVICES")
    if before is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = before


@pytest.mark.gpu
@pytest.mark.usefixtures("visible")
def test_an_instance_that_is_named_in_the_environment_comes_first() -> None:
    torch.cuda.init()  # what is set from here on changes nothing for CUDA
    os.environ["CUDA_VISIBLE_DEVICES"] = "MIG-a, MIG-b"
    first, *others = names_of(0)
    assert first == "MIG-a"
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    assert names_of(0) == tuple(others)


@pytest.mark.gpu
def test_what_was_freed_but_is_still_held_can_be_used_again() -> None:
    torch.cuda.empty_cache()
    before = reusable_bytes(0)
    held = torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda")
    during = reusable_bytes(0)
    del held
    assert reusable_bytes(0) - during >= 64 * 2**20
    torch.cuda.empty_cache()
    assert reusable_bytes(0) <= before
