import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adaptive_kv.errors import SensorError
from adaptive_kv.events import Event, EventLog, SensorFault, SensorRecovered
from adaptive_kv.policy import Device
from adaptive_kv.sensors.base import (
    MAX_DEVICE_AGE_S,
    DeviceSample,
    MemorySample,
    checked_sample,
)
from adaptive_kv.sensors.budget import BudgetSensor
from adaptive_kv.sensors.file import FileSensor
from adaptive_kv.sensors.meminfo import MeminfoSensor
from adaptive_kv.sensors.poller import MAX_FAILURES, SensorPoller


class Switchable:
    """A sensor that answers, fails or hangs as it is told."""

    def __init__(self, name: str, free_bytes: int = 10) -> None:
        self.name = name
        self.free_bytes = free_bytes
        self.error: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.is_hanging = False
        self.is_closed = False

    def read(self) -> MemorySample:
        self.is_hanging = not self.may_answer.is_set()
        self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return checked_sample(self.name, 100, self.free_bytes)

    def close(self) -> None:
        self.is_closed = True

    def fail(self) -> None:
        self.error = SensorError(self.name, "out")


def poller(*sensors: Switchable, hz: float = 1.0) -> tuple[SensorPoller, EventLog]:
    events = EventLog()
    return SensorPoller(sensors, poll_hz=hz, events=events), events


def happened(log: EventLog) -> list[Event]:
    return [record.event for record in log.since(0)[0]]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s, "did not come to pass"
        time.sleep(0.001)


class Thermometer:
    """Telemetry that counts how often it is asked, and fails when it is told to."""

    name = "thermometer"

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self.num_reads = 0
        self.is_broken = False
        self.is_closed = False

    def read(self, before: DeviceSample) -> DeviceSample:
        self.num_reads += 1
        if self.is_broken:
            raise ZeroDivisionError("oops")
        return replace(before, time_s=time.monotonic(), temperature_c=float(self.num_reads))

    def close(self) -> None:
        self.is_closed = True


def test_the_first_sample_is_there_at_once() -> None:
    polled, log = poller(Switchable("a", 7))
    assert polled.latest().free_bytes == 7
    assert happened(log) == []


def test_start_up_fails_with_every_reason_when_nothing_answers() -> None:
    first, second = Switchable("a"), Switchable("b")
    first.fail()
    with pytest.raises(SensorError, match="out") as caught:
        poller(first)
    assert caught.value.source == "a"
    second.error = RuntimeError("broken")
    with pytest.raises(SensorError, match=r"a out; b RuntimeError\('broken'\)"):
        poller(first, second)


def test_an_outage_is_one_fault_and_one_recovery_and_the_sample_ages_meanwhile() -> None:
    sensor = Switchable("a")
    polled, log = poller(sensor)
    before = polled.latest()
    sensor.fail()
    for _ in range(20):
        polled.poll()
    assert polled.latest() is before
    sensor.error = None
    for _ in range(3):
        polled.poll()
    assert happened(log) == [SensorFault(source="a", error="out"), SensorRecovered(source="a")]
    assert polled.latest().time_s > before.time_s


def test_the_next_sensor_takes_over_after_repeated_failures_and_gives_back() -> None:
    first, second = Switchable("a"), Switchable("b")
    polled, log = poller(first, second)
    first.fail()
    sources = []
    for _ in range(MAX_FAILURES):
        polled.poll()
        sources.append(polled.latest().source)
    assert sources == ["a"] * (MAX_FAILURES - 1) + ["b"]
    first.error = None
    polled.poll()
    assert polled.latest().source == "a"
    assert happened(log) == [SensorFault(source="a", error="out"), SensorRecovered(source="a")]


def test_a_single_failure_changes_nothing() -> None:
    first, second = Switchable("a"), Switchable("b")
    polled, _ = poller(first, second)
    for _ in range(5):
        first.fail()
        polled.poll()
        first.error = None
        polled.poll()
        assert polled.latest().source == "a"


def test_a_bug_in_a_sensor_counts_as_a_fault() -> None:
    sensor = Switchable("a")
    polled, log = poller(sensor)
    sensor.error = ZeroDivisionError("oops")
    polled.poll()
    assert happened(log) == [SensorFault(source="a", error="ZeroDivisionError('oops')")]


def test_history_is_bounded_and_in_order() -> None:
    sensor = Switchable("a")
    polled, _ = poller(sensor)
    for number in range(100):
        sensor.free_bytes = number
        polled.poll()
    free = [sample.free_bytes for sample in polled.history()]
    assert free == list(range(100 - len(free), 100))
    assert len(free) < 20


def test_the_thread_polls_until_closed_and_closes_the_sensors() -> None:
    sensor = Switchable("a", 1)
    polled, _ = poller(sensor, hz=1000)
    with polled:
        sensor.free_bytes = 2
        wait_until(lambda: polled.latest().free_bytes == 2)
    assert sensor.is_closed
    after = polled.latest()
    time.sleep(0.02)
    assert polled.latest() is after


def test_closing_before_starting_is_fine() -> None:
    sensor = Switchable("a")
    polled, _ = poller(sensor)
    polled.close()
    assert sensor.is_closed


def test_a_sensor_that_hangs_delays_neither_readers_nor_closing() -> None:
    sensor = Switchable("a")
    polled, _ = poller(sensor, hz=1000)
    polled.start()
    sensor.may_answer.clear()
    wait_until(lambda: sensor.is_hanging)
    assert polled.latest() is polled.latest()
    polled.close()
    assert not sensor.is_closed
    sensor.may_answer.set()


def test_a_real_file_that_goes_away_falls_over_to_the_kernel_and_back(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    path.write_text('{"total_bytes": 100, "free_bytes": 40}')
    log = EventLog()
    chain = (FileSensor(path, max_age_s=3600), MeminfoSensor())
    with SensorPoller(chain, poll_hz=500, events=log) as polled:
        assert polled.latest().free_bytes == 40
        path.unlink()
        wait_until(lambda: polled.latest().source == "meminfo")
        path.write_text('{"total_bytes": 100, "free_bytes": 30}')
        wait_until(lambda: polled.latest().free_bytes == 30)
    kinds = [event.type for event in happened(log)]
    assert kinds[0] == "sensor_fault"
    assert kinds[-1] == "sensor_recovered"


def test_each_telemetry_is_asked_at_its_own_pace() -> None:
    seldom, always = Thermometer(3600), Thermometer(0)
    polled = SensorPoller(
        (Switchable("a"),), poll_hz=1, events=EventLog(), telemetry=(seldom, always)
    )
    assert polled.device() == DeviceSample()
    for _ in range(5):
        polled.poll()
    assert (seldom.num_reads, always.num_reads) == (1, 5)
    assert polled.device().temperature_c == 5.0
    polled.close()
    assert seldom.is_closed
    assert always.is_closed


def test_a_bug_in_telemetry_is_told_once_and_memory_goes_on() -> None:
    broken, log = Thermometer(0), EventLog()
    sensor = Switchable("a", 1)
    polled = SensorPoller((sensor,), poll_hz=1, events=log, telemetry=(broken,))
    broken.is_broken = True
    for free_bytes in (2, 3):
        sensor.free_bytes = free_bytes
        polled.poll()
    assert polled.latest().free_bytes == 3
    assert happened(log) == [SensorFault(source="thermometer", error="ZeroDivisionError('oops')")]
    assert broken.num_reads == 1


def test_a_policy_is_shown_what_is_known_of_the_device_while_it_is_new() -> None:
    sample = DeviceSample(
        time_s=100.0, temperature_c=50.0, utilization=0.5, throttle_reasons=("heat",)
    )
    known = Device(temperature_c=50.0, throttled=True, utilization=0.5)
    assert sample.seen_at(100.0 + MAX_DEVICE_AGE_S) == known
    assert sample.seen_at(100.1 + MAX_DEVICE_AGE_S) == Device()
    assert replace(sample, throttle_reasons=()).seen_at(100.0).throttled is False
    assert replace(sample, throttle_reasons=None).seen_at(100.0).throttled is None
    assert DeviceSample().seen_at(0.0) == Device()


def test_a_fault_and_its_end_name_the_same_source_also_behind_a_budget(tmp_path: Path) -> None:
    path, log = tmp_path / "memory.json", EventLog()
    path.write_text('{"total_bytes": 100, "free_bytes": 40}')
    within = FileSensor(path, max_age_s=3600)
    polled = SensorPoller((BudgetSensor(100, lambda: 0, within),), poll_hz=1, events=log)
    path.unlink()
    polled.poll()
    path.write_text('{"total_bytes": 100, "free_bytes": 40}')
    polled.poll()
    fault, recovery = happened(log)
    assert isinstance(fault, SensorFault)
    assert isinstance(recovery, SensorRecovered)
    assert fault.source == recovery.source == within.name
