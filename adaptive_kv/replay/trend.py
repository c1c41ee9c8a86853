"""Where simulated memory is heading: as `sensors.trend` tells it, in constant time per moment."""

from collections import deque

_WINDOW_S = 2.0


class Trend:
    """A line through the samples of the last two seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, time_s: float, free_bytes: int) -> None:
        """One more sample, newer than the last."""
        self._samples.append((time_s, free_bytes))
        while time_s - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()

    def seconds_to(self, floor_bytes: int) -> float | None:
        """When the line meets the floor; None where it does not fall or there is too little."""
        samples = self._samples
        newest_s, free_bytes = samples[-1]
        if newest_s - samples[0][0] < _WINDOW_S / 4:
            return None
        sum_s = sum_bytes = sum_squares = sum_products = 0.0
        for time_s, num_bytes in samples:
            past_s, more_bytes = time_s - newest_s, num_bytes - free_bytes
            sum_s += past_s
            sum_bytes += more_bytes
            sum_squares += past_s * past_s
            sum_products += past_s * more_bytes
        num = len(samples)
        slope = (num * sum_products - sum_s * sum_bytes) / (num * sum_squares - sum_s * sum_s)
        return max(0, free_bytes - floor_bytes) / -slope if slope < 0 else None
