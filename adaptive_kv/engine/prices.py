"""What every mode would cost for the sequences of one moment."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from adaptive_kv.cache.weigher import Weigher
from adaptive_kv.engine.speed import Speed
from adaptive_kv.policy import CacheMode, Cost


class Prices:
    """Costs for sequences of `lengths` tokens with `gap_stops`, all in mode `now` (None: several).

    `workspace_bytes` is as `Gauge.workspace_bytes`; `speed` was measured at start-up, `seen_s` by
    mode is what steps have shown.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        gap_stops: Sequence[tuple[int, ...]],
        now: CacheMode | None,
        *,
        weigher: Weigher,
        workspace_bytes: Callable[[int, int, int], int],
        speed: Speed | None,
        seen_s: Mapping[CacheMode, float],
        sinks: int,
    ) -> None:
        self._lengths = lengths
        self._gap_stops = gap_stops
        self._now = now
        self._weigh = weigher.total_bytes
        self._workspace = workspace_bytes
        self._speed = speed
        self._seen_s = seen_s
        self._sinks = sinks

    def cost(self, mode: CacheMode) -> Cost:
        """Of one mode."""
        transient_bytes = self._recomputing_bytes if mode.is_disabled else self._decoding_bytes
        return Cost(
            bytes=transient_bytes + self._weigh(mode, self._lengths, self._gap_stops),
            transient_bytes=transient_bytes,
            token_s=self._token_s(mode),
            exact=mode.is_exact,
        )

    @cached_property
    def _decoding_bytes(self) -> int:
        return self._workspace_bytes(len(self._lengths))

    @cached_property
    def _recomputing_bytes(self) -> int:
        return self._workspace_bytes(max(self._lengths, default=0))  # whole prefixes take turns

    def _workspace_bytes(self, num_new: int) -> int:
        if not self._lengths:
            return 0
        return self._workspace(num_new, len(self._lengths), max(self._lengths))

    def _token_s(self, mode: CacheMode) -> float | None:
        """As measured at start-up for these lengths, set right by what the present mode takes."""
        speed = self._speed
        if speed is None or not self._lengths:
            return self._seen_s.get(mode)
        return speed.token_s(mode, self._lengths, self._sinks) * self._correction

    @cached_property
    def _correction(self) -> float:
        if self._speed is None or self._now is None or self._now not in self._seen_s:
            return 1.0
        known_s = self._speed.token_s(self._now, self._lengths, self._sinks)
        return self._seen_s[self._now] / known_s
