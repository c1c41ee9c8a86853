"""The real bindings on a stub of the driver's library, in processes of their own."""

import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sensors.stub import (
    BUS_0,
    BUS_1,
    DRIVER_NOT_LOADED,
    GPU_0,
    GPU_1,
    GPU_IS_LOST,
    MIG_0,
    MIG_1,
    MISMATCH,
    NO_PERMISSION,
    NOT_FOUND,
    NOT_SUPPORTED,
    TIMEOUT,
    UNKNOWN,
    Driver,
    build,
)

from adaptive_kv.errors import SensorError
from adaptive_kv.sensors.nvml import REOPEN_S, NvmlGpu, NvmlSensor
from adaptive_kv.sensors.nvml_telemetry import NvmlTelemetry

GIB = 2**30


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def process(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with Driver(library, tmp_path_factory.mktemp("state")) as driver:
        yield driver


@pytest.fixture
def driver(process: Driver) -> Iterator[Driver]:
    """The process as good as new: nothing amiss, the first GPU opened by its UUID."""
    process.reset()
    process.do("open", [GPU_0])
    yield process
    process.do("close")


def has_driver() -> bool:
    """Whether this machine has a driver of its own."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def why(driver: Driver) -> str:
    answer = driver.do("read")
    assert answer["source"] == "nvml"
    return str(answer["why"])


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s, "did not come to pass"
        time.sleep(0.005)


def test_the_bindings_load_the_stub_and_this_process_does_not(
    driver: Driver, library: Path
) -> None:
    driver.do("read")
    assert driver.do("loaded")["paths"] == [str(library / "libnvidia-ml.so.1")]
    assert str(library) not in Path("/proc/self/maps").read_text()


# Values


def test_memory_is_free_and_total_of_the_driver_live(driver: Driver) -> None:
    first = driver.do("read")
    assert (first["total_bytes"], first["free_bytes"]) == (8 * GIB, 4 * GIB)
    driver.state.places[0].free_bytes = 123
    second = driver.do("read")
    assert (second["free_bytes"], second["source"]) == (123, "nvml")
    assert second["time_s"] > first["time_s"]


def test_all_of_a_very_large_memory_is_told(driver: Driver) -> None:
    driver.state.places[0].total_bytes = driver.state.places[0].free_bytes = 2**60
    assert driver.do("read")["free_bytes"] == 2**60


def test_an_impossible_answer_is_a_fault(driver: Driver) -> None:
    driver.state.places[0].free_bytes = 9 * GIB
    assert "cannot be" in why(driver)


def test_reading_asks_for_memory_and_nothing_else(driver: Driver) -> None:
    for _ in range(10):
        driver.do("read")
    state = driver.state
    assert (state.num_inits, state.num_memory) == (1, 10)
    assert (state.num_telemetry, state.num_forbidden) == (0, 0)


def test_closing_lets_go_of_the_driver_and_reading_opens_it_again(driver: Driver) -> None:
    driver.do("read")
    driver.do("close")
    assert (driver.state.num_inits, driver.state.num_shutdowns) == (1, 1)
    driver.do("close")
    assert driver.state.num_shutdowns == 1
    assert driver.do("read")["total_bytes"] == 8 * GIB
    assert driver.state.num_inits == 2


# Which GPU


@pytest.mark.parametrize(("name", "gib"), [(GPU_0, 8), (GPU_1, 24), (BUS_0, 8), (BUS_1, 24)])
def test_a_gpu_is_known_by_uuid_or_bus_id(driver: Driver, name: str, gib: int) -> None:
    driver.do("open", [name])
    assert driver.do("read")["total_bytes"] == gib * GIB


def test_cuda_visible_devices_misleads_nobody(library: Path, tmp_path: Path) -> None:
    with Driver(library, tmp_path, CUDA_VISIBLE_DEVICES="1,0") as driver:
        for name, gib in ((GPU_1, 24), (GPU_0, 8), (BUS_1, 24)):
            driver.do("open", [name])
            assert driver.do("read")["total_bytes"] == gib * GIB


def test_names_are_tried_in_turn(driver: Driver) -> None:
    driver.do("open", ["GPU-of-another-box", BUS_1])
    assert driver.do("read")["total_bytes"] == 24 * GIB
    assert driver.state.num_inits == 1


def test_a_gpu_that_is_not_there_is_named_in_the_fault(driver: Driver) -> None:
    driver.do("open", ["GPU-absent", "MIG-absent"])
    assert why(driver) == "the driver knows no such GPU: GPU-absent, MIG-absent"
    assert driver.state.num_shutdowns == driver.state.num_inits


def test_without_a_name_the_only_gpu_is_meant_and_of_two_none(driver: Driver) -> None:
    driver.do("open")
    assert why(driver) == "there are 2 GPUs; say which by its UUID"
    driver.state.places[1].is_present = 0
    assert driver.do("read")["total_bytes"] == 8 * GIB
    driver.do("close")
    driver.state.places[0].is_present = 0
    assert why(driver) == "there are 0 GPUs; say which by its UUID"


# MIG


def test_a_mig_instance_is_known_by_its_uuid_and_has_its_own_memory(driver: Driver) -> None:
    driver.split(MIG_0, MIG_1)
    driver.do("open", [MIG_1])
    assert driver.do("read")["total_bytes"] == 3 * GIB


def test_the_only_instance_of_a_split_gpu_is_found_by_the_uuid_of_the_board(
    driver: Driver,
) -> None:
    driver.split(MIG_0)
    assert driver.do("read")["total_bytes"] == 2 * GIB


def test_of_several_instances_one_must_be_named(driver: Driver) -> None:
    driver.split(MIG_0, MIG_1)
    assert why(driver) == "the GPU is split into 2 MIG instances; say which by its MIG- UUID"
    assert driver.state.num_shutdowns == driver.state.num_inits == 1


def test_a_board_split_into_nothing_yet_is_a_fault(driver: Driver) -> None:
    driver.split()
    assert why(driver).startswith("the GPU is split into 0 MIG instances")


def test_heat_and_power_of_an_instance_are_those_of_its_board(driver: Driver) -> None:
    driver.split(MIG_0)
    driver.do("open", [MIG_0])
    assert driver.do("device")["temperature_c"] == 45
    driver.do("close")
    driver.state.sees_board = 0
    assert driver.do("device")["temperature_c"] is None
    assert driver.do("read")["total_bytes"] == 2 * GIB


# Faults of the driver


FAULTS = {
    1: "shut the driver's library down",
    2: "Invalid Argument",
    NOT_SUPPORTED: "not told by this GPU",
    NO_PERMISSION: "not permitted",
    5: "Already Initialized",
    NOT_FOUND: f"knows no such GPU: {GPU_0}",
    7: "Insufficient Size",
    8: "Insufficient External Power",
    DRIVER_NOT_LOADED: "kernel module is not loaded",
    TIMEOUT: "timed out",
    11: "Interrupt Request Issue",
    12: "libnvidia-ml is not installed",
    13: "lacks a function",
    14: "Corrupted infoROM",
    GPU_IS_LOST: "the GPU is lost",
    16: "must be reset",
    17: "operating system has blocked",
    MISMATCH: "differ in version",
    **dict.fromkeys((19, *range(21, 31)), "in the driver's own words"),
    20: "Insufficient Memory",
    77: "a code from a later driver",
    UNKNOWN: "unknown error",
}


@pytest.mark.parametrize("where", ["init_result", "find_result", "memory_result"])
@pytest.mark.parametrize("code", FAULTS)
def test_every_error_wherever_is_a_fault_that_says_why_and_ends(
    driver: Driver, code: int, where: str
) -> None:
    if where == "init_result":
        driver.do("close")
    setattr(driver.state, where, code)
    for _ in range(2):
        assert FAULTS[code] in why(driver)
    setattr(driver.state, where, 0)
    assert driver.do("read")["free_bytes"] == 4 * GIB
    assert driver.state.num_inits >= driver.state.num_shutdowns


@pytest.mark.parametrize("code", [1, GPU_IS_LOST, UNKNOWN])
def test_a_shutdown_that_fails_hides_nothing(driver: Driver, code: int) -> None:
    driver.do("read")
    driver.state.memory_result, driver.state.shutdown_result = GPU_IS_LOST, code
    assert "the GPU is lost" in why(driver)
    driver.state.memory_result = 0
    assert driver.do("read")["free_bytes"] == 4 * GIB


def test_a_lost_gpu_that_comes_back_needs_the_driver_opened_anew_and_gets_it(
    driver: Driver,
) -> None:
    driver.do("read")
    driver.state.memory_result = GPU_IS_LOST
    assert "the GPU is lost" in why(driver)
    driver.state.memory_result = 0
    before = driver.state.num_inits
    assert driver.do("read")["free_bytes"] == 4 * GIB
    assert driver.state.num_inits == before + 1


def test_a_failing_driver_is_opened_at_most_once_a_second(driver: Driver) -> None:
    driver.do("open", [GPU_0], None, REOPEN_S)
    started_s = time.monotonic()
    driver.do("read")
    driver.state.memory_result = GPU_IS_LOST
    reasons = {why(driver) for _ in range(100)}
    assert len(reasons) == 1
    assert driver.state.num_inits <= 1 + (time.monotonic() - started_s) // REOPEN_S
    driver.state.memory_result = 0
    wait_until(lambda: "free_bytes" in driver.do("read"))
    assert time.monotonic() - started_s >= REOPEN_S


def test_not_supported_means_unified_memory_only_where_the_gpu_is_integrated(
    driver: Driver,
) -> None:
    driver.state.memory_result = NOT_SUPPORTED
    for is_integrated, reason in (
        (True, "shares the host's memory; use meminfo or auto"),
        (False, "has memory of its own: a fault of its driver"),
        (None, "if it shares the host's memory use meminfo, else it is a fault"),
    ):
        driver.do("open", [GPU_0], is_integrated)
        assert why(driver).endswith(reason)


def test_the_host_speaks_for_an_integrated_gpu_and_never_for_another(driver: Driver) -> None:
    driver.state.memory_result = NOT_SUPPORTED
    assert driver.do("chain", True)["source"] == "meminfo"
    other = driver.do("chain", False)
    assert other["source"] is None
    assert "nvml" in other["reasons"][0]
    assert "cuda" in other["reasons"][1]
    driver.state.memory_result = 0
    assert driver.do("chain", False)["source"] == "nvml"


# Libraries that lack something


@pytest.mark.parametrize("lacking", ["MEMORY", "INIT"])
def test_a_driver_without_what_is_needed_says_so(tmp_path: Path, lacking: str) -> None:
    with Driver(build(tmp_path / "lib", without=(lacking,)), tmp_path) as driver:
        driver.do("open", [GPU_0])
        assert "lacks a function that is needed" in why(driver)


def test_an_old_driver_is_asked_by_the_old_names(tmp_path: Path) -> None:
    lacking = ("NEW_NAMES", "MIG", "ERROR_STRING")
    with Driver(build(tmp_path / "lib", without=lacking), tmp_path) as driver:
        driver.state.places[0].throttle_reasons = 0x40
        driver.do("open", [GPU_0])
        assert driver.do("read")["free_bytes"] == 4 * GIB
        device = driver.do("device")
        assert (device["temperature_c"], device["throttle_reasons"]) == (45, ["hardware_heat"])
        driver.state.memory_result = 77
        assert why(driver) == "NVML Error with code 77"


def test_a_later_driver_has_the_new_names_alone(tmp_path: Path) -> None:
    lacking = ("OLD_NAMES", "UTILIZATION")
    with Driver(build(tmp_path / "lib", without=lacking), tmp_path) as driver:
        driver.state.places[0].throttle_reasons = 0x04
        driver.do("open", [GPU_0])
        device = driver.do("device")
        assert (device["temperature_c"], device["throttle_reasons"]) == (45, ["power_cap"])
        assert device["utilization"] is None


def test_a_driver_with_neither_name_leaves_the_value_unknown(tmp_path: Path) -> None:
    lacking = ("NEW_NAMES", "OLD_NAMES")
    with Driver(build(tmp_path / "lib", without=lacking), tmp_path) as driver:
        driver.do("open", [GPU_0])
        device = driver.do("device")
        assert (device["temperature_c"], device["throttle_reasons"]) == (None, None)
        assert device["policy"]["throttled"] is None
        assert device["power_w"] == 15.0


def test_a_file_that_is_no_library_is_a_fault_every_time(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "libnvidia-ml.so.1").write_bytes(b"not a library")
    with Driver(folder, tmp_path) as driver:
        for _ in range(2):
            assert "libnvidia-ml is not installed" in why(driver)
        assert driver.do("device")["temperature_c"] is None


def test_a_stub_without_a_state_is_a_driver_without_its_kernel_module(
    library: Path, tmp_path: Path
) -> None:
    with Driver(library, tmp_path, NVML_STUB_STATE=str(tmp_path / "absent")) as driver:
        assert why(driver) == "the NVIDIA kernel module is not loaded"


# What is known besides memory


def test_temperature_power_utilization_and_throttling_are_told(driver: Driver) -> None:
    device = driver.do("device")
    assert (device["temperature_c"], device["power_w"]) == (45.0, 15.0)
    assert (device["utilization"], device["throttle_reasons"]) == (0.3, [])
    assert device["policy"] == {"temperature_c": 45.0, "throttled": False, "utilization": 0.3}
    place = driver.state.places[0]
    place.temperature_c, place.power_mw, place.utilization_percent = 91, 60500, 100
    place.throttle_reasons = 0x04 | 0x20
    device = driver.do("device")
    assert (device["temperature_c"], device["power_w"]) == (91.0, 60.5)
    assert (device["utilization"], device["throttle_reasons"]) == (1.0, ["power_cap", "heat"])
    assert device["policy"]["throttled"] is True
    assert driver.state.num_forbidden == 0


@pytest.mark.parametrize(
    ("bits", "is_throttled"),
    [(0x01, False), (0x02, False), (0x10, False), (0x100, False), (0x08, True), (0x80, True)],
)
def test_idle_and_chosen_clocks_are_no_throttling(
    driver: Driver, bits: int, is_throttled: bool
) -> None:
    driver.state.places[0].throttle_reasons = bits
    assert driver.do("device")["policy"]["throttled"] is is_throttled


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN, TIMEOUT])
def test_one_value_that_is_not_told_is_unknown_and_disturbs_no_other(
    driver: Driver, code: int
) -> None:
    driver.do("read")
    driver.state.temperature_result = code
    device = driver.do("device")
    assert (device["temperature_c"], device["power_w"]) == (None, 15.0)
    assert driver.do("read")["free_bytes"] == 4 * GIB
    assert driver.state.num_inits == 1


@pytest.mark.parametrize("code", [DRIVER_NOT_LOADED, GPU_IS_LOST, 16, MISMATCH])
def test_what_ends_all_calls_is_unknown_until_the_driver_is_opened_anew(
    driver: Driver, code: int
) -> None:
    driver.do("read")
    driver.state.telemetry_result = code
    device = driver.do("device")
    assert {device[key] for key in ("temperature_c", "power_w", "utilization")} == {None}
    driver.state.telemetry_result = 0
    assert driver.do("device")["temperature_c"] == 45
    assert driver.state.num_inits == 2
    assert driver.do("read")["free_bytes"] == 4 * GIB


def test_heat_is_told_where_memory_is_not(driver: Driver) -> None:
    driver.state.memory_result = NOT_SUPPORTED
    driver.do("open", [GPU_0], True)
    assert "shares the host's memory" in why(driver)
    assert driver.do("device")["temperature_c"] == 45


# The poller on the driver


def test_memory_is_polled_often_and_the_rest_once_a_second(driver: Driver) -> None:
    started_s = time.monotonic()
    driver.do("start", 50)
    wait_until(lambda: driver.state.num_memory >= 40)
    assert driver.do("latest")["device"]["temperature_c"] == 45
    driver.do("stop")
    num_rounds = driver.state.num_telemetry / 4  # temperature, power, utilization, throttling
    assert num_rounds <= 1 + (time.monotonic() - started_s) // NvmlTelemetry.period_s
    assert driver.state.num_forbidden == 0


def test_a_call_that_hangs_is_seen_by_the_age_of_its_sample_and_by_one_thread(
    driver: Driver,
) -> None:
    driver.do("start", 100)
    driver.state.is_hanging = 1
    wait_until(lambda: driver.state.num_hanging == 1)
    before = driver.do("latest")
    driver.state.places[0].free_bytes = 1
    wait_until(lambda: driver.do("latest")["age_s"] > before["age_s"] + 0.2)
    during = driver.do("latest")
    assert (during["time_s"], during["free_bytes"]) == (before["time_s"], 4 * GIB)
    assert driver.state.num_hanging == 1
    driver.state.is_hanging = 0
    wait_until(lambda: driver.do("latest")["free_bytes"] == 1)
    assert driver.do("latest")["events"] == []
    driver.do("stop")


def test_a_gpu_that_is_lost_and_comes_back_is_one_fault_and_one_recovery(
    driver: Driver,
) -> None:
    driver.do("start", 100)
    driver.state.memory_result = GPU_IS_LOST
    wait_until(lambda: len(driver.do("latest")["events"]) == 1)
    driver.state.places[0].free_bytes = 5
    driver.state.memory_result = 0
    wait_until(lambda: driver.do("latest")["free_bytes"] == 5)
    fault, recovery = driver.do("latest")["events"]
    assert (fault["type"], fault["source"]) == ("sensor_fault", "nvml")
    assert "the GPU is lost" in fault["error"]
    assert (recovery["type"], recovery["source"]) == ("sensor_recovered", "nvml")
    driver.do("stop")


def test_a_policy_is_shown_what_the_driver_says(library: Path, tmp_path: Path) -> None:
    with Driver(library, tmp_path) as driver:
        driver.state.places[1].is_present = 0
        driver.state.places[0].throttle_reasons = 0x20
        reading = driver.do("reading")
    assert (reading["memory"]["source"], reading["memory"]["free_bytes"]) == ("nvml", 4 * GIB)
    assert reading["device"] == {"temperature_c": 45.0, "throttled": True, "utilization": 0.3}


# This machine


def test_on_this_machine_what_cannot_be_found_is_a_clear_fault_every_time() -> None:
    sensor = NvmlSensor(NvmlGpu(["GPU-00000000-0000-0000-0000-000000000000"]))
    reason = "no such GPU|not told|Invalid" if has_driver() else "libnvidia-ml is not installed"
    for _ in range(2):
        with pytest.raises(SensorError, match=reason) as caught:
            sensor.read()
        assert caught.value.source == "nvml"
    sensor.close()


@pytest.mark.gpu
def test_a_gpu_states_its_memory_again_after_closing() -> None:
    from adaptive_kv.sensors.cuda import names_of  # noqa: PLC0415 - only where there is a GPU

    sensor = NvmlSensor(NvmlGpu(names_of(0)))
    for _ in range(2):
        sample = sensor.read()
        assert 0 < sample.free_bytes <= sample.total_bytes
        sensor.close()
