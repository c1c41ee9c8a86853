"""Asks a policy that may be wrong in every way, and replaces one that stays wrong."""

import time
import traceback
from collections.abc import Callable

from adaptive_kv.events import Event, PolicyFault
from adaptive_kv.policy import CacheMode, Decision, Policy, Reading

MAX_FAULTS = 5
"""After so many faults in a row the fallback policy takes over."""

_MAX_ERROR_CHARS = 300


class Asker:
    """Calls the policy in charge and passes on only answers that make sense.

    An exception, an answer that is no decision, a mode that the model does not support, or an
    answer later than `deadline_s` by `timer` is a fault: one event, and as if it had held. A
    fallback policy that has taken over stays.
    """

    def __init__(
        self,
        policy: Policy,
        name: str,
        *,
        fallback: Policy,
        fallback_name: str,
        supports: Callable[[CacheMode], bool],
        deadline_s: float,
        emit: Callable[[Event], None],
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._policy = policy
        self.name = name
        self._fallback = fallback
        self._fallback_name = fallback_name
        self._supports = supports
        self._deadline_s = deadline_s
        self._emit = emit
        self._timer = timer
        self.num_faults = 0
        self._num_in_a_row = 0
        self._is_fallback = False

    @property
    def status(self) -> str:
        """`ok`, `faulty` (the last answer was a fault) or `fallback`."""
        if self._is_fallback:
            return "fallback"
        return "faulty" if self._num_in_a_row else "ok"

    def ask(self, reading: Reading) -> Decision | None:
        """The policy's decision; None if it holds or was at fault."""
        try:
            decision = self._timely(reading)
        except Exception as error:  # noqa: BLE001 - whatever a policy raises, the service goes on
            self._note_fault(error)
            return None
        self._num_in_a_row = 0
        return decision

    def _timely(self, reading: Reading) -> Decision | None:
        start_s = self._timer()
        decision = self._checked(self._policy(reading))
        took_s = self._timer() - start_s
        if took_s > self._deadline_s:
            raise TimeoutError(f"took {took_s:.3f} s, its deadline is {self._deadline_s:g} s")
        return decision

    def _checked(self, answer: object) -> Decision | None:
        """The answer, made anew so that nothing in it has skipped validation."""
        if answer is None:
            return None
        if not isinstance(answer, Decision):
            raise TypeError(f"answered a {type(answer).__name__}, not a Decision or None")
        if not isinstance(answer.admit, bool) or not isinstance(answer.reason, str):
            raise TypeError("answered an `admit` that is no bool or a `reason` that is no str")
        decision = Decision(answer.mode, answer.reason, answer.sequences, answer.admit)
        for mode in {decision.mode, *decision.sequences.values()}:
            if not self._supports(CacheMode(mode)):
                raise ValueError(f"answered {mode}, which this model does not support")
        return decision

    def _note_fault(self, error: Exception) -> None:
        self.num_faults += 1
        self._num_in_a_row += 1
        takes_over = self._num_in_a_row == MAX_FAULTS and not self._is_fallback
        if self._num_in_a_row <= MAX_FAULTS:
            self._emit(
                PolicyFault(
                    policy=self.name,
                    error=_told(error) + ("; the fallback policy takes over" if takes_over else ""),
                    faults=self.num_faults,
                )
            )
        if takes_over:
            self._policy, self.name = self._fallback, self._fallback_name
            self._is_fallback = True
            self._num_in_a_row = 0


def _told(error: Exception) -> str:
    """One line, of bounded length, even for an exception that cannot be printed."""
    lines = traceback.format_exception_only(error)
    return " ".join("".join(lines).split())[:_MAX_ERROR_CHARS]
