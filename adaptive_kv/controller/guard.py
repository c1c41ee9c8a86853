"""What no policy can override, for one reading."""

from adaptive_kv.controller.dwell import Dwell
from adaptive_kv.controller.rungs import Rungs
from adaptive_kv.policy import CacheMode, Reading, SequenceInfo

OBJECTIONS = {
    "guard_stale": "the memory sample is too old",
    "guard_floor": "the floor is broken",
    "guard_dwell": "the last change is too recent",
    "guard_fit": "it would not fit above the floor",
}
"""Why the guard holds back: code and words."""


class Guard:
    """Judges changes of mode against one reading; keeps count of the room that they take.

    A change is down, and free, only if it is lower *and* does not grow: `disabled` can need more
    than an int4 cache. `by_hand` excuses from knowing the cost, not from fitting where known.
    """

    def __init__(
        self, reading: Reading, rungs: Rungs, dwell: Dwell, max_age_s: float, by_hand: bool
    ) -> None:
        self._reading = reading
        self._rungs = rungs
        self._dwell = dwell
        self._by_hand = by_hand
        self._is_fresh = reading.memory.sample_age_s <= max_age_s
        self._room_bytes = reading.memory.headroom_bytes
        self._num_tokens = sum(sequence.num_tokens for sequence in reading.sequences)

    def objection(self, target: CacheMode, current: CacheMode) -> str | None:
        """Why the service must not change from `current` to `target` now; None if it may."""
        if target == current:
            return None
        return self._objection(target, current, self._growth_bytes(target, current), None)

    def take(
        self, target: CacheMode, current: CacheMode, sequence: SequenceInfo, since_s: float
    ) -> bool:
        """Whether `sequence`, ordered `current` at `since_s`, may change; takes its room if so."""
        growth_bytes = self._growth_bytes(target, current)
        if growth_bytes is not None:
            growth_bytes = growth_bytes * sequence.num_tokens // max(1, self._num_tokens)
        if self._objection(target, current, growth_bytes, since_s) is not None:
            return False
        self._room_bytes -= max(0, growth_bytes or 0)
        return True

    def _growth_bytes(self, target: CacheMode, current: CacheMode) -> int | None:
        """How much more all sequences together need in `target`; None where not known."""
        costs = self._reading.costs
        if target not in costs or current not in costs:
            return None
        return costs[target].bytes - costs[current].bytes

    def _objection(
        self, target: CacheMode, current: CacheMode, growth_bytes: int | None, since_s: float | None
    ) -> str | None:
        is_up = self._rungs.is_up(target, current, self._reading.costs)
        if not is_up and (growth_bytes is None or growth_bytes <= 0):
            return None
        if not self._is_fresh:
            return "guard_stale"
        if self._room_bytes < 0:
            return "guard_floor"
        if is_up and not self._dwell.has_passed(self._reading.time_s, since_s):
            return "guard_dwell"
        fits = self._by_hand if growth_bytes is None else growth_bytes <= self._room_bytes
        return None if fits else "guard_fit"
