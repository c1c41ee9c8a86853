from pathlib import Path

import pytest

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.file import FileSensor
from adaptive_kv.sensors.headroom import HeadroomSensor


def stated(path: Path, free_bytes: int) -> FileSensor:
    path.write_text(f'{{"total_bytes": 100, "free_bytes": {free_bytes}}}')
    return FileSensor(path, max_age_s=60)


@pytest.mark.parametrize(
    ("free", "held", "ours"), [(40, 0, 0), (40, 25, 25), (40, 60, 60), (40, 61, 60), (0, 7, 7)]
)
def test_what_we_hold_unused_is_free_for_us_and_told_apart(
    tmp_path: Path, free: int, held: int, ours: int
) -> None:
    sensor = HeadroomSensor(stated(tmp_path / "memory.json", free), lambda: held)
    sample = sensor.read()
    assert (sample.free_bytes, sample.reusable_bytes) == (free + ours, ours)
    assert sample.source == sensor.name


def test_it_knows_no_more_than_the_device(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    sensor = HeadroomSensor(stated(path, 40), lambda: 25)
    sensor.close()
    path.unlink()
    with pytest.raises(SensorError, match="cannot be read") as caught:
        sensor.read()
    assert caught.value.source == sensor.name
