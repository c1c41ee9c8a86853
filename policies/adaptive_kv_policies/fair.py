"""Sequence by sequence: the longest of the lowest priority pay first, and no more than needed."""

from adaptive_kv import CacheMode, Decision, Reading
from adaptive_kv.policy import SequenceInfo


class Fair:
    """Leaves sequences at the top of the ladder, except as many as the bytes demand.

    All of one priority go down a rung, the longest first, before any goes down the next, and the
    lowest priority goes all the way first; who has paid is asked first: none swap places. They pay
    until `tight` of the memory above the floor is free, and are paid back once `roomy` of it would
    be. Raises `ValueError` unless 0 <= tight < roomy < 1.
    """

    is_stateless = True

    def __init__(self, tight: float = 0.05, roomy: float = 0.15) -> None:
        if not 0 <= tight < roomy < 1:
            raise ValueError("give 0 <= tight < roomy < 1")
        self._tight, self._roomy = tight, roomy

    def __call__(self, now: Reading) -> Decision:
        """The top of the ladder for all, but for those that pay."""
        if not (most := _payments(now, self._roomy)):
            return Decision(now.ladder[0], "nobody has to pay")
        least = _payments(now, self._tight)
        modes = {s.id: _kept(now, s, least, most) for s in now.sequences if s.id in most}
        return Decision(now.ladder[0], f"{len(modes)} of {now.load.running} pay", modes)


def _payments(now: Reading, free_share: float) -> dict[str, CacheMode]:
    """Who pays with which mode, were `free_share` of what lies above the floor to be free."""
    short_bytes: float = int(free_share * (now.memory.total_bytes - now.memory.floor_bytes))
    short_bytes -= now.memory.headroom_bytes
    if short_bytes + now.costs[now.ladder[0]].bytes <= 0:
        return {}  # whoever they are
    num_tokens = max(1, sum(s.num_tokens for s in now.sequences))

    def weight(s: SequenceInfo, mode: CacheMode) -> float:
        return now.costs[mode].bytes * s.num_tokens / num_tokens if mode in now.costs else 0

    short_bytes += sum(weight(s, _own_top(now, s)) - s.cache_bytes for s in now.sequences)
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
    return next(filter(sequence.permits, now.ladder), sequence.mode)


def _turns(now: Reading) -> list[tuple[SequenceInfo, CacheMode]]:
    """Who pays with which rung, in this order."""

    def order(turn: tuple[SequenceInfo, int]) -> tuple[int, int, bool, int, str]:
        s, place = turn
        return s.priority, place, s.mode not in now.ladder[place:], -s.num_tokens, s.id

    turns = [(s, place) for s in now.sequences for place in range(1, len(now.ladder))]
    return [(s, now.ladder[place]) for s, place in sorted(turns, key=order)]


def _kept(
    now: Reading, s: SequenceInfo, least: dict[str, CacheMode], most: dict[str, CacheMode]
) -> CacheMode:
    """Its mode where that lies between what must be paid and what may be asked for."""
    order = [*now.ladder, s.mode]
    high, low = order.index(least.get(s.id, _own_top(now, s))), order.index(most[s.id])
    return order[max(high, min(low, order.index(s.mode)))]
