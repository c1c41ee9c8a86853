import shutil
import tempfile
from pathlib import Path

import pytest
from sensors.limits import Tenant, limited
from sensors.tree import group_v1, group_v2, procfs, write

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.cgroup import CgroupSensor
from adaptive_kv.sensors.host import HostSensor

Files = dict[str, object]

MIB = 2**20
NONE_V1 = 9223372036854771712


# The kernel of this machine


def test_what_a_real_group_leaves_shrinks_as_its_process_takes_memory_and_grows_back() -> None:
    with limited(400 * MIB) as group, Tenant(group) as tenant:
        before = tenant.do("read", "cgroup")
        assert (before["source"], before["total_bytes"]) == ("cgroup", 400 * MIB)
        tenant.do("allocate", 200 * MIB)
        during = tenant.do("read", "cgroup")
        assert 190 * MIB < before["free_bytes"] - during["free_bytes"] < 230 * MIB
        tenant.do("release")
        after = tenant.do("read", "cgroup")
        assert after["free_bytes"] - during["free_bytes"] > 170 * MIB


def test_a_real_group_does_not_count_page_cache_as_used() -> None:
    with (
        tempfile.NamedTemporaryFile(dir="/var/tmp") as file,  # /tmp may be memory itself
        limited(400 * MIB) as group,
        Tenant(group) as tenant,
    ):
        before = tenant.do("read", "cgroup")
        tenant.do("write", file.name, 128 * MIB)
        assert before["free_bytes"] - tenant.do("read", "cgroup")["free_bytes"] < 64 * MIB


def test_the_tightest_of_real_groups_inside_each_other_counts() -> None:
    with limited(300 * MIB) as outer, limited(500 * MIB, within=outer) as inner:
        with Tenant(inner) as tenant:
            assert tenant.do("read", "cgroup")["total_bytes"] == 300 * MIB
        with limited(200 * MIB, within=outer) as other, Tenant(other) as tenant:
            assert tenant.do("read", "cgroup")["total_bytes"] == 200 * MIB


def test_a_process_that_is_moved_is_followed() -> None:
    with limited(300 * MIB) as first, limited(500 * MIB) as second, Tenant(first) as tenant:
        assert tenant.do("read", "cgroup")["total_bytes"] == 300 * MIB
        tenant.move(second)
        assert tenant.do("read", "cgroup")["total_bytes"] == 500 * MIB


def test_auto_lets_a_real_limit_speak_only_where_it_leaves_less() -> None:
    with limited(300 * MIB) as tight, limited(2**50) as wide, Tenant(tight) as tenant:
        assert tenant.do("read", "auto")["source"] == "cgroup"
        tenant.move(wide)
        assert tenant.do("read", "auto")["source"] == "meminfo"
        tenant.move(tight)
        assert tenant.do("read", "auto")["total_bytes"] == 300 * MIB


# Version 2, as files


def v2(tmp_path: Path, files: Files) -> CgroupSensor:
    mount = write(tmp_path / "cgroup", files)
    return CgroupSensor(procfs(tmp_path, "0::/a/b", ("/", mount, "cgroup2", "rw")))


def test_v2_reclaimable_page_cache_is_free(tmp_path: Path) -> None:
    sample = v2(tmp_path, group_v2("a/b", 700, inactive=300, limit=1000)).read()
    assert (sample.total_bytes, sample.free_bytes, sample.source) == (1000, 600, "cgroup")


@pytest.mark.parametrize(
    ("high", "limit", "total"), [(800, 1000, 800), (1000, 800, 800), (900, "max", 900)]
)
def test_v2_high_and_max_both_hold(tmp_path: Path, high: int, limit: int | str, total: int) -> None:
    sample = v2(tmp_path, group_v2("a/b", 100, high=high, limit=limit)).read()
    assert (sample.total_bytes, sample.free_bytes) == (total, total - 100)


def test_v2_a_group_around_ours_may_leave_less(tmp_path: Path) -> None:
    own, around = group_v2("a/b", 100, limit=500), group_v2("a", 900, limit=1000)
    assert v2(tmp_path, own | around).read().free_bytes == 100
    assert v2(tmp_path, own | group_v2("a", 400, limit=1000)).read().free_bytes == 400


def test_v2_a_group_past_its_limit_leaves_nothing(tmp_path: Path) -> None:
    assert v2(tmp_path, group_v2("a/b", 1200, high=1000)).read().free_bytes == 0
    assert v2(tmp_path, group_v2("a/b", 10, inactive=20, limit=100)).read().free_bytes == 100


def test_v2_without_a_limit_says_so(tmp_path: Path) -> None:
    sensor = v2(tmp_path, group_v2("a/b", 100) | group_v2("a", 100))
    assert sensor.read_limit() is None
    with pytest.raises(SensorError, match=r"no memory limit is set .* use meminfo or auto"):
        sensor.read()


def test_v2_groups_that_do_not_account_for_memory_limit_nothing(tmp_path: Path) -> None:
    assert v2(tmp_path, {"a/b/cgroup.procs": 1}).read_limit() is None


# Version 1, as files


def v1(tmp_path: Path, files: Files, name: str = "/a/b", root: str = "/") -> CgroupSensor:
    mount = write(tmp_path / "memory", files)
    groups = f"9:name=systemd:/x\n4:cpu,memory:{name}\n0::/y"
    mounts = (
        ("/", tmp_path, "cgroup", "rw,name=systemd"),
        (root, mount, "cgroup", "rw,memory,cpu"),
        ("/", tmp_path, "cgroup2", "rw"),
    )
    return CgroupSensor(procfs(tmp_path, groups, *mounts))


def test_v1_reclaimable_page_cache_is_free(tmp_path: Path) -> None:
    around = group_v1("a", 0, 0, NONE_V1) | group_v1(".", 900, 0, NONE_V1)
    sample = v1(tmp_path, group_v1("a/b", 700, 300, 1000) | around).read()
    assert (sample.total_bytes, sample.free_bytes) == (1000, 600)


def test_v1_groups_around_ours_count_while_they_are_hierarchical(tmp_path: Path) -> None:
    own, root = group_v1("a/b", 100, 0, 500), group_v1(".", 900, 0, NONE_V1)
    assert v1(tmp_path, own | group_v1("a", 90, 0, 100) | root).read().free_bytes == 10
    flat = group_v1("a", 90, 0, 100, hierarchy=0)
    assert v1(tmp_path, own | flat | root).read().free_bytes == 400


def test_v1_without_a_limit_says_so(tmp_path: Path) -> None:
    sensor = v1(tmp_path, group_v1(".", 100, 0, NONE_V1), "/")
    with pytest.raises(SensorError, match="no memory limit is set"):
        sensor.read()


def test_v1_a_container_sees_its_own_group_as_the_root_of_the_mount(tmp_path: Path) -> None:
    files = group_v1(".", 100, 0, 400)
    assert v1(tmp_path, files, "/docker/x", root="/docker/x").read().free_bytes == 300
    assert v1(tmp_path, files, "/docker/x", root="/").read().free_bytes == 300
    assert v1(tmp_path, files, "/../other", root="/").read().free_bytes == 300


# What is not as it should be


@pytest.mark.parametrize(
    "broken", [{"a/b/memory.current": "lots"}, {"a/b/memory.max": ""}, {"a/b/memory.stat": "\xff"}]
)
def test_a_group_that_speaks_nonsense_is_a_fault(tmp_path: Path, broken: dict[str, object]) -> None:
    sensor = v2(tmp_path, group_v2("a/b", 100, limit=500) | broken)
    with pytest.raises(SensorError, match=r"cannot read .*a/b"):
        sensor.read()


def test_a_group_that_lacks_a_file_is_a_fault_until_it_is_there(tmp_path: Path) -> None:
    sensor = v2(tmp_path, group_v2("a/b", 100, limit=500))
    path = tmp_path / "cgroup/a/b/memory.current"
    path.unlink()
    with pytest.raises(SensorError, match="cannot read"):
        sensor.read()
    path.write_text("200\n")
    assert sensor.read().free_bytes == 300


def test_without_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert CgroupSensor(tmp_path).read_limit() is None
    assert CgroupSensor(procfs(tmp_path, "0::/a")).read_limit() is None
    unmounted = procfs(tmp_path, "0::/a", ("/", tmp_path / "absent", "cgroup2", "rw"))
    assert CgroupSensor(unmounted).read_limit() is None


def test_lines_that_no_kernel_writes_are_passed_over(tmp_path: Path) -> None:
    sensor = v2(tmp_path, group_v2("a/b", 100, limit=500))
    for name in ("cgroup", "mountinfo"):
        path = tmp_path / "proc/self" / name
        path.write_text(f"\nnonsense\n1:\n - \n{path.read_text()}")
    assert sensor.read().free_bytes == 400


def test_a_mount_may_have_a_space_in_its_name(tmp_path: Path) -> None:
    write(tmp_path / "c group", group_v2("a", 100, limit=500))
    mount = Path(f"{tmp_path}/c\\040group")
    sensor = CgroupSensor(procfs(tmp_path, "0::/a", ("/", mount, "cgroup2", "rw")))
    assert sensor.read().free_bytes == 400


# The host and its groups together


def host(tmp_path: Path, files: Files) -> HostSensor:
    mount = write(tmp_path / "cgroup", files)
    return HostSensor(procfs(tmp_path, "0::/a", ("/", mount, "cgroup2", "rw")))


@pytest.mark.parametrize(
    ("limit", "source", "free"),
    [("max", "meminfo", 600 * 1024), (500_000, "cgroup", 400_000), (2**40, "meminfo", 600 * 1024)],
)
def test_the_host_says_the_less_of_both_and_whose_it_is(
    tmp_path: Path, limit: int | str, source: str, free: int
) -> None:
    sample = host(tmp_path, group_v2("a", 100_000, limit=limit)).read()
    assert (sample.source, sample.free_bytes) == (source, free)


def test_a_limit_that_was_known_and_cannot_be_read_is_a_fault_until_it_can(
    tmp_path: Path,
) -> None:
    files = group_v2("a", 100_000, limit=500_000)
    sensor = host(tmp_path, files)
    assert sensor.read().source == "cgroup"
    write(tmp_path / "cgroup", {"a/memory.max": "nonsense"})
    with pytest.raises(SensorError, match="cannot read"):
        sensor.read()
    write(tmp_path / "cgroup", files)
    assert sensor.read().source == "cgroup"
    sensor.close()


def test_groups_that_never_made_sense_leave_the_host_to_speak(tmp_path: Path) -> None:
    sensor = host(tmp_path, group_v2("a", 100_000, limit="nonsense"))
    assert sensor.read().source == "meminfo"
    shutil.rmtree(tmp_path / "cgroup")
    assert sensor.read().source == "meminfo"
