from pathlib import Path

import pytest

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.budget import BudgetSensor
from adaptive_kv.sensors.meminfo import MeminfoSensor


def test_free_is_what_we_have_not_used() -> None:
    used = [30]
    sensor = BudgetSensor(100, lambda: used[0])
    assert sensor.read().free_bytes == 70
    used[0] = 90
    sample = sensor.read()
    assert (sample.total_bytes, sample.free_bytes, sample.source) == (100, 10, "budget")


def test_an_overdrawn_budget_has_nothing_free() -> None:
    assert BudgetSensor(100, lambda: 101).read().free_bytes == 0


def test_a_budget_cannot_have_more_free_than_its_device(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 8 kB\nMemAvailable: 2 kB\n")
    sensor = BudgetSensor(8192, lambda: 1024, within=MeminfoSensor(path))
    assert sensor.read().free_bytes == 2048
    path.write_text("MemTotal: 16 kB\nMemAvailable: 16 kB\n")
    assert sensor.read().free_bytes == 8192 - 1024
    path.unlink()
    with pytest.raises(SensorError, match="meminfo"):
        sensor.read()
    sensor.close()
