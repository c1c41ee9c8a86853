"""Where free memory is heading."""

from collections.abc import Sequence
from statistics import linear_regression

from adaptive_kv.sensors.base import MemorySample


def seconds_to_floor(
    samples: Sequence[MemorySample], floor_bytes: int, *, window_s: float = 2.0
) -> float | None:
    """When free memory meets the floor if it goes on as in the last `window_s`.

    `samples` are oldest first; only those of the newest one's source count. 0 when it is there
    already and still shrinking; None when it is not shrinking or there is too little to tell.
    """
    if not samples:
        return None
    newest = samples[-1]
    recent = [
        sample
        for sample in samples
        if sample.source == newest.source and newest.time_s - sample.time_s <= window_s
    ]
    if newest.time_s - recent[0].time_s < window_s / 4:
        return None
    slope, _ = linear_regression(
        [sample.time_s - newest.time_s for sample in recent],
        [float(sample.free_bytes) for sample in recent],
    )
    if slope >= 0:
        return None
    return max(0, newest.free_bytes - floor_bytes) / -slope
