import itertools
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_kv.sensors.base import MemorySample
from adaptive_kv.sensors.trend import seconds_to_floor


def sample(time_s: float, free_bytes: int, source: str = "nvml") -> MemorySample:
    return MemorySample(total_bytes=10**12, free_bytes=free_bytes, source=source, time_s=time_s)


def line(slope: int, start: int = 10_000, num: int = 40) -> list[MemorySample]:
    return [sample(i / 20, start + slope * i // 20) for i in range(num)]


def test_memory_that_shrinks_evenly_meets_the_floor_when_arithmetic_says() -> None:
    samples = line(-1000, num=41)  # 10,000 falling by 1,000 a second, 8,000 left
    assert seconds_to_floor(samples, 3000) == pytest.approx(5.0, rel=0.01)


def test_memory_that_holds_or_grows_never_meets_it() -> None:
    assert seconds_to_floor(line(0), 0) is None
    assert seconds_to_floor(line(500), 0) is None


def test_under_the_floor_and_shrinking_is_zero() -> None:
    assert seconds_to_floor(line(-1000), 9_999) == 0


def test_too_little_to_tell() -> None:
    assert seconds_to_floor([], 0) is None
    assert seconds_to_floor(line(-1000, num=1), 0) is None
    assert seconds_to_floor(line(-1000, num=5), 0) is None


def test_only_the_last_seconds_and_the_newest_source_count() -> None:
    old = [sample(i / 20 - 10, 10**6 - i * 10**4) for i in range(40)]
    other = [sample(i / 20, 10**6 - i * 10**4, "meminfo") for i in range(40)]
    assert seconds_to_floor([*old, *line(500)], 0) is None
    assert seconds_to_floor([*other, *line(500)], 0) is None


@given(
    st.lists(st.tuples(st.floats(0, 0.2), st.integers(0, 10**12)), max_size=60),
    st.integers(0, 10**12),
)
def test_it_answers_none_or_a_time_ahead_for_any_samples(
    steps: list[tuple[float, int]], floor_bytes: int
) -> None:
    time_s, samples = 0.0, []
    for gap_s, free_bytes in steps:
        time_s += gap_s
        samples.append(sample(time_s, free_bytes))
    ahead_s = seconds_to_floor(samples, floor_bytes)
    assert ahead_s is None or ahead_s >= 0


_walks = st.lists(st.tuples(st.integers(1, 16), st.integers(0, 10**9)), min_size=5, max_size=30)


@given(_walks, st.integers(0, 10**9))
@settings(deadline=None)
def test_the_line_is_the_one_of_least_squares(walk: list[tuple[int, int]], floor: int) -> None:
    times_s = [ticks / 32 for ticks in itertools.accumulate(ticks for ticks, _ in walk)]
    free = [free_bytes for _, free_bytes in walk]
    samples = [sample(*each) for each in zip(times_s, free, strict=True)]
    slope, _ = statistics.linear_regression(times_s, free)
    told = seconds_to_floor(samples, floor, window_s=times_s[-1] - times_s[0])
    if slope < -1:  # flatter ones may be rounded to either side
        assert told == pytest.approx(max(0, free[-1] - floor) / -slope, rel=1e-6, abs=1e-6)
    elif slope > 1:
        assert told is None
