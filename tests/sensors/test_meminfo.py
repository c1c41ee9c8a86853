from pathlib import Path

import pytest

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.meminfo import MeminfoSensor


def test_the_kernel_of_this_machine_answers() -> None:
    sensor = MeminfoSensor()
    sample = sensor.read()
    sensor.close()
    assert 0 < sample.free_bytes < sample.total_bytes
    assert sample.source == "meminfo"
    assert sensor.read().time_s >= sample.time_s


def test_available_memory_counts_not_free_memory(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  600 kB\n")
    sample = MeminfoSensor(path).read()
    assert (sample.total_bytes, sample.free_bytes) == (1000 * 1024, 600 * 1024)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no MemTotal"),
        ("MemTotal: 1000 kB\n", "no MemAvailable"),
        ("MemTotal: 1000 kB\nMemAvailable: lots kB\n", "no MemAvailable"),
        ("MemTotal: 1000 MB\nMemAvailable: 1 MB\n", "no MemTotal"),
        ("MemTotal: 1000 kB\nMemAvailable: 1001 kB\n", "cannot be"),
    ],
)
def test_nonsense_is_a_fault(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "meminfo"
    path.write_text(text)
    with pytest.raises(SensorError, match=why):
        MeminfoSensor(path).read()


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match="cannot read"):
        MeminfoSensor(tmp_path / "absent").read()
