"""What every mode would cost for the sequences of one moment."""

from collections.abc import Callable, Mapping

from adaptive_kv.cache.weigher import Weigher
from adaptive_kv.engine.seen import Seen
from adaptive_kv.engine.speed import Speed
from adaptive_kv.policy import CacheMode, Cost


class Prices:
    """Costs for sequences as they were `seen`.

    `workspace_bytes` is as `Gauge.workspace_bytes`; `speed` was measured at start-up, `seen_s` by
    mode is what steps have shown.
    """

    def __init__(
        self,
        seen: Seen,
        *,
        weigher: Weigher,
        workspace_bytes: Callable[[int, int, int], int],
        speed: Speed | None,
        seen_s: Mapping[CacheMode, float],
        sinks: int,
    ) -> None:
        self._seen = seen
        self._weigh = weigher.total_bytes
        self._workspace_bytes = workspace_bytes
        self._speed = speed
        self._seen_s = seen_s
        self._sinks = sinks
        self._decoding_bytes: int | None = None
        self._correction: float | None = None

    def cost(self, mode: CacheMode) -> Cost:
        """Of one mode."""
        seen = self._seen
        transient_bytes = self._transient_bytes(mode) if seen.lengths else 0
        return Cost(
            bytes=transient_bytes + self._weigh(mode, seen.lengths, seen.gap_stops),
            transient_bytes=transient_bytes,
            token_s=self._token_s(mode),
            exact=mode.is_exact,
        )

    def _transient_bytes(self, mode: CacheMode) -> int:
        num, longest = len(self._seen.lengths), max(self._seen.lengths)
        if mode.is_disabled:  # whole prefixes take turns
            return self._workspace_bytes(longest, num, longest)
        if self._decoding_bytes is None:
            self._decoding_bytes = self._workspace_bytes(num, num, longest)
        return self._decoding_bytes

    def _token_s(self, mode: CacheMode) -> float | None:
        """As measured at start-up for these lengths, set right by what the present mode takes."""
        speed = self._speed
        if speed is None or not self._seen.lengths:
            return self._seen_s.get(mode)
        if self._correction is None:
            self._correction = self._corrected_by(speed)
        return speed.token_s(mode, self._seen.lengths, self._sinks) * self._correction

    def _corrected_by(self, speed: Speed) -> float:
        now, *others = set(self._seen.modes)
        if others or now not in self._seen_s:
            return 1.0
        return self._seen_s[now] / speed.token_s(now, self._seen.lengths, self._sinks)
