import time
from pathlib import Path

import pytest
from sensors.tree import procfs, write

from adaptive_kv.sensors.base import DeviceSample
from adaptive_kv.sensors.pressure import PressureTelemetry


def psi(some_us: int, full_us: int) -> str:
    averages = "avg10=0.00 avg60=0.00 avg300=0.00"
    return f"some {averages} total={some_us}\nfull {averages} total={full_us}"


def test_on_this_machine_stalls_are_a_share_or_unknown() -> None:
    telemetry = PressureTelemetry()
    first = telemetry.read(DeviceSample())
    assert (first.stalled_some, first.stalled_full) == (None, None)
    time.sleep(0.01)
    second = telemetry.read(first)
    if Path("/proc/pressure/memory").exists():
        assert second.stalled_some is not None
        assert second.stalled_full is not None
        assert 0 <= second.stalled_full <= second.stalled_some <= 1
    else:
        assert second.stalled_some is None


def test_the_share_is_the_growth_of_the_total_over_the_time_between(tmp_path: Path) -> None:
    proc = write(tmp_path, {"pressure/memory": psi(10**9, 10**9)})
    telemetry = PressureTelemetry(proc)
    before = telemetry.read(DeviceSample())
    time.sleep(0.05)
    write(proc, {"pressure/memory": psi(10**9 + 10_000, 10**9)})
    after = telemetry.read(before)
    elapsed_s = after.time_s - before.time_s
    assert after.stalled_some == pytest.approx(0.01 / elapsed_s)
    assert after.stalled_full == 0


def test_a_share_is_never_over_one_nor_under_zero(tmp_path: Path) -> None:
    proc = write(tmp_path, {"pressure/memory": psi(10**9, 10**9)})
    telemetry = PressureTelemetry(proc)
    before = telemetry.read(DeviceSample())
    write(proc, {"pressure/memory": psi(10**12, 0)})
    after = telemetry.read(before)
    assert (after.stalled_some, after.stalled_full) == (1, 0)


def test_the_own_group_is_asked_where_the_kernel_accounts_for_it(tmp_path: Path) -> None:
    group = write(tmp_path / "cgroup", {"a/memory.pressure": psi(0, 0)})
    proc = procfs(tmp_path, "0::/a", ("/", group, "cgroup2", "rw"))
    write(proc, {"pressure/memory": psi(0, 0)})
    telemetry = PressureTelemetry(proc)
    before = telemetry.read(DeviceSample())
    write(group, {"a/memory.pressure": psi(10**12, 10**12)})
    assert telemetry.read(before).stalled_full == 1


@pytest.mark.parametrize("content", [None, "", "some", "some total=lots", "\nsome total=1"])
def test_a_kernel_without_such_figures_leaves_them_unknown(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        write(tmp_path, {"pressure/memory": content})
    telemetry = PressureTelemetry(tmp_path)
    sample = telemetry.read(telemetry.read(DeviceSample(temperature_c=40.0)))
    assert (sample.stalled_some, sample.stalled_full) == (None, None)
    assert sample.temperature_c == 40.0


def test_after_closing_the_next_read_is_a_first_one(tmp_path: Path) -> None:
    telemetry = PressureTelemetry(write(tmp_path, {"pressure/memory": psi(0, 0)}))
    telemetry.read(DeviceSample())
    telemetry.close()
    assert telemetry.read(DeviceSample()).stalled_some is None
