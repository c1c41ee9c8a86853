"""Latency and throughput as running sequences see them."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping

from adaptive_kv.policy import CacheMode, Latency

_NUM_SAMPLES = 128
_RATE_WINDOW_S = 5.0


class _Newest:
    """The newest `max_num` numbers, kept in order too: their quantiles are asked in every step."""

    def __init__(self, max_num: int) -> None:
        self._max_num = max_num
        self._values: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        """Take one more; the oldest goes."""
        if len(self._values) == self._max_num:
            del self._sorted[bisect_left(self._sorted, self._values.popleft())]
        self._values.append(value)
        insort(self._sorted, value)

    def quantile(self, share: float) -> float:
        """The value below which `share` of them lie, between two of them by their distance."""
        at = share * (len(self._sorted) - 1)
        below = int(at)
        above = min(below + 1, len(self._sorted) - 1)
        low, high = self._sorted[below], self._sorted[above]
        return low + (high - low) * (at - below)


class Meter:
    """Fed once per step by the worker; times are monotonic seconds."""

    def __init__(self) -> None:
        self._token_s = _Newest(_NUM_SAMPLES)
        self._by_mode: dict[CacheMode, _Newest] = {}
        self._typical_s: Mapping[CacheMode, float] = {}
        self._usual_s: float | None = None
        self._finished: deque[tuple[float, int]] = deque()
        self._num_finished = 0
        self._latency = Latency(token_s=None, p50_s=None, p95_s=None)

    def add_step(
        self,
        now_s: float,
        duration_s: float,
        decoded: dict[CacheMode, int],
        *,
        is_typical: bool = True,
    ) -> None:
        """A step took `duration_s` and gave each of `decoded` (mode: sequences) one token.

        One that is not typical says nothing about what a mode costs.
        """
        if not decoded:
            return
        newest = self._token_s
        newest.add(duration_s)
        self._latency = Latency(
            token_s=duration_s, p50_s=newest.quantile(0.5), p95_s=newest.quantile(0.95)
        )
        num_tokens = sum(decoded.values())
        self._finished.append((now_s, num_tokens))
        self._num_finished += num_tokens
        if is_typical and len(decoded) == 1:  # a mixed step says nothing about one mode
            mode = next(iter(decoded))
            seen = self._by_mode.setdefault(mode, _Newest(_NUM_SAMPLES // 4))
            seen.add(duration_s)
            self._usual_s = seen.quantile(0.5)
            self._typical_s = {**self._typical_s, mode: self._usual_s}

    def latency(self) -> Latency:
        """Seconds per token over the last steps."""
        return self._latency

    def token_s_by_mode(self) -> Mapping[CacheMode, float]:
        """Seconds per token last seen in each mode that was used; never changes afterwards."""
        return self._typical_s

    def usual_s(self) -> float | None:
        """Seconds of a typical step, in whichever mode one was last seen; None before any step."""
        return self._usual_s or self.latency().p50_s

    def tokens_per_s(self, now_s: float) -> float:
        """Tokens of all sequences over the last seconds."""
        while self._finished and self._finished[0][0] < now_s - _RATE_WINDOW_S:
            self._num_finished -= self._finished.popleft()[1]
        if not self._finished:
            return 0.0
        span_s = max(now_s - self._finished[0][0], 0.1)
        return self._num_finished / span_s
