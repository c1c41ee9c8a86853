"""Tells a policy that changes its mind from one that cannot make it up."""

from collections import deque
from collections.abc import Mapping

from adaptive_kv.policy import Decision

MAX_RETURNS = 8
"""So many returns to what was wanted the time before last, within `NUM_ANSWERS`, is flapping."""

NUM_ANSWERS = 16

_Wish = tuple[str, Mapping[str, str]]


class Flaps:
    """Remembers the last answers of one policy."""

    def __init__(self) -> None:
        self._wishes: tuple[_Wish | None, _Wish | None] = (None, None)
        self._are_returns: deque[bool] = deque(maxlen=NUM_ANSWERS)

    def note(self, decision: Decision) -> bool:
        """Whether the policy wants, with this answer, two things in turns."""
        wish = (decision.mode, decision.sequences)
        before, last = self._wishes
        self._are_returns.append(wish == before and wish != last)
        self._wishes = (last, wish)
        return sum(self._are_returns) > MAX_RETURNS
