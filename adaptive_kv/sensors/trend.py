"""Where free memory is heading."""

from collections.abc import Iterable, Sequence

from adaptive_kv.sensors.base import MemorySample

WINDOW_S = 2.0
"""So far back is looked, if nothing else is said."""


def seconds_to_floor(
    samples: Sequence[MemorySample], floor_bytes: int, *, window_s: float = WINDOW_S
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
    slope = _bytes_per_s(recent, newest)
    return max(0, newest.free_bytes - floor_bytes) / -slope if slope < 0 else None


def _bytes_per_s(samples: Iterable[MemorySample], origin: MemorySample) -> float:
    """The slope of the line through them, by least squares.

    The standard library's is several times slower, which a replay of a day would feel. Counting
    from `origin` keeps the sums small.
    """
    num = 0
    sum_s = sum_bytes = sum_squares = sum_products = 0.0
    for sample in samples:
        past_s, more_bytes = sample.time_s - origin.time_s, sample.free_bytes - origin.free_bytes
        num += 1
        sum_s += past_s
        sum_bytes += more_bytes
        sum_squares += past_s * past_s
        sum_products += past_s * more_bytes
    return (num * sum_products - sum_s * sum_bytes) / (num * sum_squares - sum_s * sum_s)
