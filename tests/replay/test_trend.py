"""The trend of a replay is the one that the service would have told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_kv.replay.trend import Trend
from adaptive_kv.sensors.base import MemorySample
from adaptive_kv.sensors.trend import seconds_to_floor

steps = st.tuples(st.integers(1, 60), st.integers(0, 10**9))


@given(st.lists(steps, min_size=1, max_size=30), st.integers(0, 10**9))
@settings(deadline=None)
def test_it_tells_what_the_sensors_trend_tells(walk: list[tuple[int, int]], floor: int) -> None:
    trend, samples, time_s = Trend(), [], 0.0
    for num_ticks, free_bytes in walk:
        time_s += num_ticks / 32
        trend.add(time_s, free_bytes)
        samples.append(
            MemorySample(total_bytes=10**9, free_bytes=free_bytes, source="x", time_s=time_s)
        )
        told, wanted = trend.seconds_to(floor), seconds_to_floor(samples, floor)
        if told is None or wanted is None or max(told, wanted) > 1e9:
            assert (told is None or told > 1e9) == (wanted is None or wanted > 1e9)
        else:
            assert told == pytest.approx(wanted, rel=1e-6, abs=1e-6)
