"""A small world without surprises: only what a policy wants happens."""

from collections.abc import Iterator, Mapping

from adaptive_kv.policy import CacheMode, Decision, Reading, SequenceInfo
from adaptive_kv.testing.readings import DEFAULT_LADDER, make_costs, make_reading, make_sequence

_GIB = 2**30
_TOTAL_BYTES, _WEIGHTS_BYTES, _FLOOR_BYTES = 8 * _GIB, 2 * _GIB, _GIB // 4
_LENGTHS = {"long": 24_000, "middle": 8_000, "short": 2_000}
_COSTS = make_costs(DEFAULT_LADDER, sum(_LENGTHS.values()))
_STEP_S, _DWELL_S = 0.1, 5.0

LEVELS_BYTES = tuple(int(level * _GIB) for level in (0.0, 0.5, 1.0, 1.4, 3.0))
"""What others hold; at the last one the floor is broken unless the cache becomes smaller."""


class World:
    """Three sequences on a box where others hold `others_bytes`; starts in `full`."""

    def __init__(self, time_s: float, others_bytes: int) -> None:
        self.time_s = self._since_s = time_s
        self._others_bytes = others_bytes
        self.mode = CacheMode("full")
        self._modes = dict.fromkeys(_LENGTHS, self.mode)
        self.num_changes = 0

    def readings(self, num: int) -> Iterator[Reading]:
        """`num` readings, a tenth of a second apart; `follow` what is decided between two."""
        for _ in range(num):
            self.time_s += _STEP_S
            yield self.reading()

    def reading(self) -> Reading:
        """How things are now."""
        sequences = _sequences(self._modes)
        cache_bytes = _cache_bytes(self._modes)
        free_bytes = _TOTAL_BYTES - _WEIGHTS_BYTES - self._others_bytes - cache_bytes
        return make_reading(
            time_s=self.time_s,
            step=round(self.time_s / _STEP_S),
            total_bytes=_TOTAL_BYTES,
            free_bytes=max(0, free_bytes),
            floor_bytes=_FLOOR_BYTES,
            weights_bytes=_WEIGHTS_BYTES,
            mode=self.mode,
            mode_age_s=self.time_s - self._since_s,
            sequences=sequences,
            costs=_COSTS,
        )

    def follow(self, decision: Decision | None) -> None:
        """Do what is wanted: to grow, only so long after the last change; no unknown mode."""
        if decision is None:
            return
        mode = CacheMode(decision.mode)
        modes = {id_: CacheMode(decision.sequences.get(id_, mode)) for id_ in self._modes}
        is_change = (mode, modes) != (self.mode, self._modes)
        if not is_change or not {mode, *modes.values()} <= _COSTS.keys():
            return
        is_growth = _COSTS[mode].bytes > _COSTS[self.mode].bytes
        is_growth |= _cache_bytes(modes) > _cache_bytes(self._modes)
        if is_growth and self.time_s - self._since_s < _DWELL_S:
            return
        self.num_changes += 1
        self._since_s = self.time_s
        self.mode, self._modes = mode, modes


def _sequences(modes: Mapping[str, str]) -> list[SequenceInfo]:
    return [make_sequence(id_, num_tokens=_LENGTHS[id_], mode=mode) for id_, mode in modes.items()]


def _cache_bytes(modes: Mapping[str, str]) -> int:
    return sum(sequence.cache_bytes for sequence in _sequences(modes))
