"""Acts on where memory is heading: as early as switching takes on this box, and no earlier."""

from adaptive_kv import CacheMode, Decision, Reading


class Forecast:
    """Goes down when the floor would be met before a switch is done, else leaves memory in use.

    How fast a switch frees bytes is learned from each, starting with `freed_bytes_per_s`. Down:
    to the first rung that will do for `look_s` at this trend. Up: one rung, when no floor was in
    sight for `hold_s`, and a share of `spare` stays free. Raises `ValueError` for bad options.
    """

    def __init__(
        self,
        margin_s: float = 1.5,
        look_s: float = 10.0,
        hold_s: float = 5.0,
        spare: float = 0.1,
        freed_bytes_per_s: float = 256 * 2**20,
    ) -> None:
        if not (0 <= margin_s <= look_s and hold_s >= 0 and spare > 0 and freed_bytes_per_s > 0):
            raise ValueError("give 0 <= margin_s <= look_s, and no negative number")
        self._margin_s, self._look_s, self._hold_s = margin_s, look_s, hold_s
        self._spare, self._freed_per_s = spare, freed_bytes_per_s
        self._calm_since_s = float("-inf")
        self._watched: tuple[float, int] | None = None  # a way down: since when, and from how much

    def __call__(self, now: Reading) -> Decision | None:
        """Decide; None is hold."""
        self._learn(now)
        place = now.ladder.index(now.mode) if now.mode in now.ladder else -1
        ahead_s, cost_bytes = _ahead_s(now), now.costs[now.mode].bytes
        ways = now.ladder[place + 1 :] if ahead_s < float("inf") else ()
        lower = tuple(rung for rung in ways if now.costs[rung].bytes < cost_bytes)
        freed_bytes = cost_bytes - now.costs[lower[0]].bytes if lower else 0
        if lower and ahead_s < self._margin_s + freed_bytes / self._freed_per_s:
            self._calm_since_s, self._watched = now.time_s, (now.time_s, _cached_bytes(now))
            return Decision(self._lower(now, lower, ahead_s), f"{ahead_s:.1f} s to the floor")
        if ahead_s < self._look_s:
            self._calm_since_s = now.time_s
        higher = now.ladder[max(0, place - 1) : place] if place >= 0 else now.ladder
        room_bytes = now.memory.headroom_bytes - _spare_bytes(now, self._spare)
        rung = _first(now, higher, cost_bytes + room_bytes)
        calm_s = min(now.time_s - self._calm_since_s, now.mode_age_s)
        return Decision(rung, "no floor in sight") if rung and calm_s >= self._hold_s else None

    def _lower(self, now: Reading, rungs: tuple[CacheMode, ...], ahead_s: float) -> CacheMode:
        """The first rung with which the present trend is endured, else the smallest."""
        lost_bytes = now.memory.headroom_bytes * self._look_s / ahead_s if ahead_s else 0.0
        left_bytes = now.memory.headroom_bytes - lost_bytes - _spare_bytes(now, self._spare / 2)
        smallest = min(rungs, key=lambda rung: now.costs[rung].bytes)
        return _first(now, rungs, now.costs[now.mode].bytes + left_bytes) or smallest

    def _learn(self, now: Reading) -> None:
        """Note how fast the last way down freed bytes, once it is done."""
        if self._watched and now.mode_age_s > 0 and _cached_bytes(now) <= now.costs[now.mode].bytes:
            since_s, from_bytes = self._watched
            freed_bytes, self._watched = from_bytes - _cached_bytes(now), None
            if freed_bytes > from_bytes / 10 and now.time_s > since_s:
                self._freed_per_s += (freed_bytes / (now.time_s - since_s) - self._freed_per_s) / 2


def _ahead_s(now: Reading) -> float:
    """Seconds until the floor; shortly after a change the trend only shows the change itself."""
    ahead_s = now.seconds_to_floor if now.mode_age_s >= 2 else None
    return 0.0 if now.memory.headroom_bytes < 0 else float("inf") if ahead_s is None else ahead_s


def _cached_bytes(now: Reading) -> int:
    return sum(sequence.cache_bytes for sequence in now.sequences)


def _first(now: Reading, rungs: tuple[CacheMode, ...], most_bytes: float) -> CacheMode | None:
    return next((rung for rung in rungs if now.costs[rung].bytes <= most_bytes), None)


def _spare_bytes(now: Reading, share: float) -> float:
    return share * max(0, now.memory.total_bytes - now.memory.floor_bytes)
