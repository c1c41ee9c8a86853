import json
import time
from pathlib import Path

import pytest

from adaptive_kv.config import MemorySettings
from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.choose import make_sensors, make_sources


def names(device: str = "cpu", **memory: object) -> list[str]:
    return [s.name for s in make_sensors(MemorySettings(**memory), device, lambda: 0)]  # type: ignore[arg-type]


def test_a_cpu_is_told_by_the_kernel_or_by_the_budget() -> None:
    assert names() == ["meminfo"]
    assert names(budget=2**30) == ["budget"]


def test_a_named_source_stands_alone(tmp_path: Path) -> None:
    assert names(source="meminfo", budget=2**30) == ["meminfo"]
    assert names(source="budget", budget=2**30) == ["budget"]
    assert names(source="nvml") == ["nvml"]
    assert names(source="cgroup", budget=2**30) == ["cgroup"]
    assert names("cuda:1", source="cuda") == ["cuda"]
    assert names(source=f"file:{tmp_path}/m.json") == [f"file:{tmp_path}/m.json"]


def test_a_budget_on_auto_sees_the_real_memory_of_the_box() -> None:
    memory = MemorySettings(budget=2**60)
    (sensor,) = make_sensors(memory, "cpu", lambda: 5)
    sample = sensor.read()
    assert sample.total_bytes == 2**60
    assert sample.free_bytes < 2**60 - 5


def test_the_file_is_given_the_age_limit_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    path.write_text(json.dumps({"total_bytes": 100, "free_bytes": 40}))
    memory = MemorySettings(source=f"file:{path}", max_age_s=3600)
    (sensor,) = make_sensors(memory, "cpu", lambda: 0)
    assert sensor.read().time_s <= time.monotonic()


def test_auto_on_cuda_without_a_device_says_that_it_is_not_there() -> None:
    with pytest.raises(SensorError, match="no CUDA device 99"):
        names("cuda:99")


def test_stalls_are_told_everywhere_and_heat_where_the_driver_is_asked() -> None:
    def telemetry(source: str) -> list[str]:
        sources = make_sources(MemorySettings(source=source), "cpu", lambda: 0)
        return [each.name for each in sources.telemetry]

    assert telemetry("auto") == ["pressure"]
    assert telemetry("nvml") == ["nvml", "pressure"]


@pytest.mark.gpu
def test_a_gpu_is_told_by_its_driver_then_its_runtime_and_a_shared_memory_by_the_kernel() -> None:
    assert names("cuda") in (["nvml", "cuda"], ["meminfo"])
    assert set(names("cuda", budget=2**30)) == {"budget"}
