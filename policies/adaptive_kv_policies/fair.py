"""Sequence by sequence: the longest of the lowest priority pay first, and no more than needed."""

from functools import cache, lru_cache

from adaptive_kv import CacheMode, Decision, Reading
from adaptive_kv.policy import SequenceInfo


class Fair:
    """Leaves sequences at the top of the ladder, except as many as the bytes demand.

    All of one priority go down a rung, the longest first, before any goes down the next, and the
    lowest priority goes all the way before the next pays at all; who has paid is asked first, so
    that none swap places. They pay until `tight` of the memory above the floor is free, and are
    paid back once `roomy` of it would be. Raises `ValueError` unless 0 <= tight < roomy < 1.
    """

    is_stateless = True

    def __init__(self, tight: float = 0.05, roomy: float = 0.15) -> None:
        if not 0 <= tight < roomy < 1:
            raise ValueError("give 0 <= tight < roomy < 1")
        self._tight, self._roomy = tight, roomy

    def __call__(self, now: Reading) -> Decision:
        """The top of the ladder for all, but for those that pay."""
        most = _payments(now, self._roomy)
        if not most:
            return _nobody_pays(now.ladder[0])
        least = _payments(now, self._tight)
        modes = {s.id: _kept(now, s, least, most) for s in now.sequences if s.id in most}
        num_paying = sum(mode != now.ladder[0] for mode in modes.values())
        return Decision(now.ladder[0], f"{num_paying} of {len(now.sequences)} pay", modes)


@lru_cache(maxsize=1)
def _nobody_pays(top: CacheMode) -> Decision:
    return Decision(top, "nobody has to pay")


def _payments(now: Reading, free_share: float) -> dict[str, CacheMode]:
    """Who pays with which mode, were `free_share` of what lies above the floor to be free."""
    num_tokens = max(1, sum(s.num_tokens for s in now.sequences))
    all_bytes = cache(lambda mode: now.costs[mode].bytes if mode in now.costs else 0)

    def weight(sequence: SequenceInfo, mode: CacheMode) -> float:
        return all_bytes(mode) * sequence.num_tokens / num_tokens

    short_bytes = sum(weight(s, _own_top(now, s)) - s.cache_bytes for s in now.sequences)
    short_bytes += int(free_share * (now.memory.total_bytes - now.memory.floor_bytes))
    short_bytes -= now.memory.headroom_bytes
    paid: dict[str, CacheMode] = {}
    for payer, rung in _turns(now) if short_bytes > 0 else ():
        mode = paid.get(payer.id) or _own_top(now, payer)
        saved_bytes = weight(payer, mode) - weight(payer, rung)
        if saved_bytes > 0 and short_bytes > 0 and payer.permits(rung):
            paid[payer.id] = rung
            short_bytes -= saved_bytes
    return paid


def _own_top(now: Reading, sequence: SequenceInfo) -> CacheMode:
    """The highest mode that a sequence's request permits."""
    if sequence.allow is None:
        return now.ladder[0]
    return next(filter(sequence.permits, now.ladder), sequence.mode)


def _turns(now: Reading) -> list[tuple[SequenceInfo, CacheMode]]:
    """Who pays with which rung, in this order."""

    def order(turn: tuple[SequenceInfo, int]) -> tuple[int, int, bool, int, str]:
        payer, place = turn
        has_paid = payer.mode in now.ladder[place:]
        return (payer.priority, place, not has_paid, -payer.num_tokens, payer.id)

    turns = [(s, place) for s in now.sequences for place in range(1, len(now.ladder))]
    return [(payer, now.ladder[place]) for payer, place in sorted(turns, key=order)]


def _kept(
    now: Reading, s: SequenceInfo, least: dict[str, CacheMode], most: dict[str, CacheMode]
) -> CacheMode:
    """Its mode where that lies between what must be paid and what may be asked for."""
    order = [*now.ladder, s.mode]
    high, low = order.index(least.get(s.id, _own_top(now, s))), order.index(most[s.id])
    return order[max(high, min(low, order.index(s.mode)))]
