"""Down the ladder fast when memory runs short, up again slowly when it stays free."""

from adaptive_kv import CacheMode, Decision, Reading


class Ladder:
    """Hysteresis along the configured ladder.

    Down as soon as memory is tighter than `down`, or would meet the floor within `horizon_s`:
    straight to the first rung that frees enough, else to the smallest. Up one rung when memory
    would be looser than `up` even then, and has been for `hold_s`. A rung that is not smaller
    than those above it is no way down. Raises `ValueError` for options that make no sense.
    """

    def __init__(
        self, down: float = 0.90, up: float = 0.75, hold_s: float = 5.0, horizon_s: float = 3.0
    ) -> None:
        if not (0 < up < down and hold_s >= 0 and horizon_s >= 0):
            raise ValueError("give 0 < up < down, and no negative hold_s or horizon_s")
        self._down, self._up = down, up
        self._hold_s, self._horizon_s = hold_s, horizon_s
        self._calm_since_s: float | None = None

    def __call__(self, now: Reading) -> Decision | None:
        """Decide; None is hold."""
        if now.mode not in now.ladder:
            return self._lower(now, now.ladder, float("inf"), 0, "back on the ladder")
        place, num_bytes = now.ladder.index(now.mode), now.costs[now.mode].bytes
        is_tight, lost_bytes = _tightness(now, now.mode, 0) > self._down, self._lost_bytes(now)
        if is_tight or lost_bytes > 0:
            self._calm_since_s = None
            reason = "memory is short" if is_tight else "the floor is near"
            return self._lower(now, now.ladder[place + 1 :], num_bytes, lost_bytes, reason)
        return self._raise(now, now.ladder[place - 1]) if place else None

    def _lost_bytes(self, now: Reading) -> float:
        """What will be gone within the horizon if that reaches the floor, else 0."""
        ahead_s, horizon_s = now.seconds_to_floor, self._horizon_s
        # Shortly after a change the trend shows the change itself.
        if ahead_s is None or ahead_s >= horizon_s or now.mode_age_s < horizon_s:
            return 0
        return now.memory.headroom_bytes * horizon_s / max(ahead_s, 0.01)

    def _lower(
        self, now: Reading, rungs: tuple[CacheMode, ...], than: float, lost_bytes: float, why: str
    ) -> Decision | None:
        """The first of `rungs`, each smaller than the last, that frees enough; or the smallest."""
        best = None
        for rung in rungs:
            if now.costs[rung].bytes < than:
                best, than = rung, now.costs[rung].bytes
                if _tightness(now, rung, lost_bytes) <= (self._up + self._down) / 2:
                    break
        return Decision(best, why) if best else None

    def _raise(self, now: Reading, rung: CacheMode) -> Decision | None:
        """`rung`, once it has been affordable for long enough."""
        if _tightness(now, rung, 0) >= self._up:
            self._calm_since_s = None
            return None
        if self._calm_since_s is None:
            self._calm_since_s = now.time_s
        calm_s = min(now.time_s - self._calm_since_s, now.mode_age_s)
        return Decision(rung, "memory stays free") if calm_s >= self._hold_s else None


def _tightness(now: Reading, rung: CacheMode, lost_bytes: float) -> float:
    """Pressure as far as the cache is to blame, were all in `rung` and `lost_bytes` more gone.

    On a box that others fill, pressure is always high; what counts is how much of the memory
    that it could have (its own and the free one above the floor) the cache holds.
    """
    cache_bytes = now.costs[rung].bytes
    free_bytes = now.memory.headroom_bytes - lost_bytes + now.costs[now.mode].bytes - cache_bytes
    usable_bytes = now.memory.total_bytes - now.memory.floor_bytes
    if free_bytes < 0 or usable_bytes <= 0:
        return float("inf")
    share = cache_bytes / max(1, cache_bytes + free_bytes)
    return max(share, min(1 - free_bytes / usable_bytes, 2 * share))
