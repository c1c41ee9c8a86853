"""Latency and throughput as running sequences see them."""

from collections import deque
from collections.abc import Mapping
from statistics import median, quantiles

from adaptive_kv.policy import CacheMode, Latency

_NUM_SAMPLES = 128
_RATE_WINDOW_S = 5.0


class Meter:
    """Fed once per step by the worker; times are monotonic seconds."""

    def __init__(self) -> None:
        self._token_s: deque[float] = deque(maxlen=_NUM_SAMPLES)
        self._by_mode: dict[CacheMode, deque[float]] = {}
        self._typical_s: Mapping[CacheMode, float] = {}
        self._finished: deque[tuple[float, int]] = deque()
        self._num_finished = 0

    def add_step(self, now_s: float, duration_s: float, decoded: dict[CacheMode, int]) -> None:
        """A step took `duration_s` and gave each of `decoded` (mode: sequences) one token."""
        if not decoded:
            return
        self._token_s.append(duration_s)
        num_tokens = sum(decoded.values())
        self._finished.append((now_s, num_tokens))
        self._num_finished += num_tokens
        if len(decoded) == 1:  # a mixed step says nothing about one mode
            mode = next(iter(decoded))
            seen = self._by_mode.setdefault(mode, deque(maxlen=_NUM_SAMPLES // 4))
            seen.append(duration_s)
            self._typical_s = {**self._typical_s, mode: median(seen)}

    def latency(self) -> Latency:
        """Seconds per token over the last steps."""
        if not self._token_s:
            return Latency(token_s=None, p50_s=None, p95_s=None)
        newest = self._token_s[-1]
        if len(self._token_s) == 1:
            return Latency(token_s=newest, p50_s=newest, p95_s=newest)
        p95_s = quantiles(self._token_s, n=20, method="inclusive")[-1]
        return Latency(token_s=newest, p50_s=median(self._token_s), p95_s=p95_s)

    def token_s_by_mode(self) -> Mapping[CacheMode, float]:
        """Seconds per token last seen in each mode that was used; never changes afterwards."""
        return self._typical_s

    def tokens_per_s(self, now_s: float) -> float:
        """Tokens of all sequences over the last seconds."""
        while self._finished and self._finished[0][0] < now_s - _RATE_WINDOW_S:
            self._num_finished -= self._finished.popleft()[1]
        if not self._finished:
            return 0.0
        span_s = max(now_s - self._finished[0][0], 0.1)
        return self._num_finished / span_s
