"""The demonstration plays only with memory that this machine can spare."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_kv.config import load_settings
from adaptive_kv.demo.processes import demo_config
from adaptive_kv.demo.room import (
    HEADROOM_BYTES,
    MIB,
    SERVICE_BYTES,
    Room,
    TooSmallError,
    cgroup_room_bytes,
    plan_room,
)
from adaptive_kv.sensors.base import MemorySample

GIB = 2**30


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_service_is_served_in_the_type_that_suits_the_device(
    device: str, tmp_path: Path
) -> None:
    """float32 on a GPU would leave its kernels aside."""
    config = tmp_path / "demo.toml"
    config.write_text(demo_config(device, Room(floor_bytes=GIB, most_bytes=GIB), None))
    model = load_settings(config).model
    assert (model.dtype, model.device) == ("auto", device.partition(":")[0])


def sample(total_bytes: int, free_bytes: int) -> MemorySample:
    return MemorySample(total_bytes=total_bytes, free_bytes=free_bytes, source="test", time_s=0.0)


@given(
    total=st.integers(2 * GIB, 512 * GIB), share=st.floats(0, 1), limit=st.none() | st.integers()
)
def test_a_plan_keeps_a_safe_floor_and_gives_the_service_its_headroom(
    total: int, share: float, limit: int | None
) -> None:
    """Or it says clearly that there is too little."""
    free_bytes = int(total * share)
    try:
        room = plan_room(sample(total, free_bytes), limit)
    except TooSmallError:
        usable_bytes = free_bytes - max(512 * MIB, total // 10)
        assert min(usable_bytes, usable_bytes if limit is None else limit) < (
            SERVICE_BYTES + HEADROOM_BYTES
        )
        return
    assert room.floor_bytes >= max(512 * MIB, total // 10)
    assert free_bytes - room.floor_bytes >= SERVICE_BYTES + HEADROOM_BYTES
    assert limit is None or room.most_bytes + SERVICE_BYTES <= limit


def test_a_machine_of_4_gib_is_enough() -> None:
    assert plan_room(sample(4 * GIB, 3 * GIB)).floor_bytes > GIB


def test_too_little_memory_is_said_with_figures() -> None:
    with pytest.raises(TooSmallError, match="needs 1408 MiB of memory, and can take only 488 MiB"):
        plan_room(sample(2 * GIB, 1000 * MIB))


@pytest.mark.parametrize(
    ("limit", "usage", "room"),
    [("3000", "1000", 2000), ("max", "1000", None), ("9223372036854771712", "1000", None)],
)
@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_is_known(
    tmp_path: Path, version: int, limit: str, usage: str, room: int | None
) -> None:
    folder = tmp_path if version == 2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    names = ("memory.max", "memory.current")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, text in zip(names, (limit, usage), strict=True):
        (folder / name).write_text(f"{text}\n")
    assert cgroup_room_bytes(tmp_path) == room


def test_no_control_group_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_room_bytes(tmp_path) is None
