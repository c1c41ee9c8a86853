import os
import time
from pathlib import Path

import pytest

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.file import FileSensor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.json"


def test_what_the_file_states_is_the_truth_and_other_keys_are_ignored(path: Path) -> None:
    path.write_text('{"total_bytes": 100, "free_bytes": 40, "by": "me"}')
    sample = FileSensor(path, max_age_s=60).read()
    assert (sample.total_bytes, sample.free_bytes) == (100, 40)
    assert sample.source == f"file:{path}"


def test_a_sample_is_as_old_as_its_file(path: Path) -> None:
    path.write_text('{"total_bytes": 100, "free_bytes": 40}')
    os.utime(path, (time.time() - 30, time.time() - 30))
    assert time.monotonic() - FileSensor(path, max_age_s=60).read().time_s >= 29


def test_a_file_dated_in_the_future_is_new(path: Path) -> None:
    path.write_text('{"total_bytes": 100, "free_bytes": 40}')
    os.utime(path, (time.time() + 3600, time.time() + 3600))
    assert FileSensor(path, max_age_s=60).read().time_s <= time.monotonic()


def test_a_stale_file_is_a_fault_until_it_is_written_again(path: Path) -> None:
    sensor = FileSensor(path, max_age_s=60)
    path.write_text('{"total_bytes": 100, "free_bytes": 40}')
    os.utime(path, (1, 1))
    with pytest.raises(SensorError, match="is its writer running"):
        sensor.read()
    path.write_text('{"total_bytes": 100, "free_bytes": 30}')
    assert sensor.read().free_bytes == 30


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ('{"total_bytes": 1, "free_bytes": NaN}', "no number of bytes"),
        ("[1, 2]", "not an object"),
        ('{"total_bytes": 1}', "not an object with"),
        ('{"free_bytes": 1}', "not an object with"),
        ('{"total_bytes": 100, "free_bytes": -1}', "cannot be"),
        ('{"total_bytes": 100, "free_bytes": 101}', "cannot be"),
        ('{"total_bytes": 0, "free_bytes": 0}', "cannot be"),
        ('{"total_bytes": "100", "free_bytes": 1}', "no number of bytes"),
        ('{"total_bytes": 100, "free_bytes": true}', "no number of bytes"),
        ('{"total_bytes": 100, "free_bytes": 1.5}', "no number of bytes"),
    ],
)
def test_nonsense_is_a_fault_that_says_what_is_wrong(path: Path, text: str, why: str) -> None:
    path.write_text(text)
    with pytest.raises(SensorError, match=why) as caught:
        FileSensor(path, max_age_s=60).read()
    assert caught.value.source == f"file:{path}"


def test_bytes_that_are_no_text_are_a_fault(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SensorError, match="not JSON"):
        FileSensor(path, max_age_s=60).read()


def test_a_missing_file_or_a_folder_is_a_fault(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(SensorError, match="cannot be read"):
            FileSensor(path, max_age_s=60).read()
