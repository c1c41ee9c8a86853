"""Sequence by sequence: the longest of the lowest priority pay first, and no more than needed."""

from adaptive_kv import CacheMode, Decision, Reading
from adaptive_kv.policy import SequenceInfo


class Fair:
    """Leaves sequences at the top of the ladder, except as many as the bytes demand.

    All of one priority go down a rung, the longest first, before any goes down the next, and the
    lowest priority goes all the way before the next pays at all; who has paid is asked before
    who has not, so that none swap places. They pay until `tight` of the
    memory above the floor is free, and are paid back once `roomy` of it would still be. It keeps
    no memory of its own. Raises `ValueError` unless 0 <= tight < roomy < 1.
    """

    is_stateless = True

    def __init__(self, tight: float = 0.05, roomy: float = 0.15) -> None:
        if not 0 <= tight < roomy < 1:
            raise ValueError("give 0 <= tight < roomy < 1")
        self._tight, self._roomy = tight, roomy

    def __call__(self, now: Reading) -> Decision:
        """Decide for every sequence; new ones start at the top."""
        least, most = _payments(now, self._tight), _payments(now, self._roomy)
        modes = {s.id: _kept(now, s.mode, least[s.id], most[s.id]) for s in now.sequences}
        num_paying = sum(mode != now.ladder[0] for mode in modes.values())
        return Decision(now.ladder[0], f"{num_paying} of {len(modes)} sequences pay", modes)


def _payments(now: Reading, free_share: float) -> dict[str, CacheMode]:
    """The mode of every sequence, were `free_share` of what lies above the floor to be free."""
    num_tokens = max(1, sum(s.num_tokens for s in now.sequences))
    token_bytes = {mode: cost.bytes / num_tokens for mode, cost in now.costs.items()}
    modes = {s.id: next(filter(s.permits, now.ladder), s.mode) for s in now.sequences}
    left_bytes = now.memory.headroom_bytes + sum(s.cache_bytes for s in now.sequences)
    left_bytes -= int(free_share * (now.memory.total_bytes - now.memory.floor_bytes))
    short_bytes = sum(s.num_tokens * token_bytes.get(modes[s.id], 0) for s in now.sequences)
    short_bytes -= left_bytes
    for payer, rung in _turns(now) if short_bytes > 0 else ():
        saved_bytes = payer.num_tokens * (token_bytes.get(modes[payer.id], 0) - token_bytes[rung])
        if saved_bytes > 0 and short_bytes > 0 and payer.permits(rung):
            modes[payer.id] = rung
            short_bytes -= saved_bytes
    return modes


def _turns(now: Reading) -> list[tuple[SequenceInfo, CacheMode]]:
    """Who pays with which rung, in this order."""

    def order(turn: tuple[SequenceInfo, int]) -> tuple[int, int, bool, int, str]:
        payer, place = turn
        has_paid = payer.mode in now.ladder[place:]
        return (payer.priority, place, not has_paid, -payer.num_tokens, payer.id)

    turns = [(s, place) for s in now.sequences for place in range(1, len(now.ladder))]
    return [(payer, now.ladder[place]) for payer, place in sorted(turns, key=order)]


def _kept(now: Reading, mode: CacheMode, least: CacheMode, most: CacheMode) -> CacheMode:
    """`mode` where it lies between what must be paid and what may be asked for."""
    order = [*now.ladder, mode]
    high, low = order.index(least), order.index(most)
    return order[max(high, min(low, order.index(mode)))]
