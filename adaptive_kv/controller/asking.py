"""Asks a policy that may be wrong in every way, and replaces one that stays wrong."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from adaptive_kv.controller.flaps import Flaps
from adaptive_kv.events import Event, PolicyFault
from adaptive_kv.policy import CacheMode, Decision, Policy, Reading

MAX_FAULTS = 5
"""After so many faults in a row the fallback policy takes over."""

_MAX_ERROR_CHARS = 300


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong with a policy, in words."""

    text: str


@runtime_checkable
class LatePolicy(Protocol):
    """A policy that answers when it can: whoever asks waits for nothing.

    What was answered last stands until something newer comes.
    """

    def exchange(self, reading: Reading) -> Sequence[object]:
        """Hand over the newest reading; answers and `Fault`s since the last time, oldest first."""
        ...

    def close(self) -> None:
        """Answer no more; waits for nothing."""
        ...


AnyPolicy = Policy | LatePolicy


class Asker:
    """Asks the policy in charge and passes on only answers that make sense.

    An exception, an answer that is no decision, a mode that the model does not support, an
    answer later than `deadline_s` by `timer`, what a `LatePolicy` calls a fault, or wanting two
    things in turns is a fault: one event. The policy has then held, or, if it is a `LatePolicy`,
    its last good answer stands. After `MAX_FAULTS` in a row the fallback takes over until
    `reload`.
    """

    _standing: Decision | None
    """The last good answer of a `LatePolicy`."""
    _remade: tuple[object, Decision | None]
    """The last answer, and what was made of it."""

    def __init__(
        self,
        policy: AnyPolicy,
        name: str,
        *,
        fallback: Policy,
        fallback_name: str,
        supports: Callable[[CacheMode], bool],
        deadline_s: float,
        emit: Callable[[Event], None],
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._fallback = fallback
        self._fallback_name = fallback_name
        self._supports = supports
        self._deadline_s = deadline_s
        self._emit = emit
        self._timer = timer
        self.num_faults = 0
        self._is_fallback = False
        self._put_in_charge(policy, name)

    @property
    def status(self) -> str:
        """`ok`, `faulty` (the last answer was a fault) or `fallback`."""
        if self._is_fallback:
            return "fallback"
        return "faulty" if self._num_in_a_row else "ok"

    def ask(self, reading: Reading) -> Decision | None:
        """The policy's decision; None if it holds or was at fault."""
        if self._late is None:
            answer = self._noted(self._answer(reading))
            return None if isinstance(answer, Fault) else answer
        for news in self._late.exchange(reading):
            answer = self._noted(news if isinstance(news, Fault) else self._checked(news))
            if self._is_fallback:
                return None
            if not isinstance(answer, Fault):
                self._standing = answer
        return self._standing

    def reload(self, policy: AnyPolicy, name: str, deadline_s: float | None = None) -> None:
        """Put `policy` in charge, whatever was before; what was is closed."""
        self.close()
        self._deadline_s = self._deadline_s if deadline_s is None else deadline_s
        self._is_fallback = False
        self._put_in_charge(policy, name)

    def close(self) -> None:
        """Let go of the policy in charge."""
        if self._late is not None:
            self._late.close()

    def _put_in_charge(self, policy: AnyPolicy, name: str) -> None:
        self.name = name
        self._late = policy if isinstance(policy, LatePolicy) else None
        self._policy: Policy = self._fallback if isinstance(policy, LatePolicy) else policy
        self._standing = None
        self._remade = None, None
        self._flaps = Flaps()
        self._num_in_a_row = 0

    def _answer(self, reading: Reading) -> Decision | Fault | None:
        """What a policy answers that is asked in this thread."""
        start_s = self._timer()
        try:
            answer = self._checked(self._policy(reading))
        except Exception as error:  # noqa: BLE001 - whatever a policy raises, the service goes on
            return Fault(_told(error))
        took_s = self._timer() - start_s
        if took_s > self._deadline_s:
            return Fault(f"TimeoutError: took {took_s:.3f} s, its deadline is {self._deadline_s:g}")
        return answer

    def _checked(self, answer: object) -> Decision | Fault | None:
        """The answer, made anew so that nothing in it has skipped validation, or what it lacks."""
        if answer is None:
            return None
        try:
            decision = self._made_anew(answer)
        except Exception as error:  # noqa: BLE001 - an answer may hold anything
            return Fault(_told(error))
        return Fault("wants two things in turns") if self._flaps.note(decision) else decision

    def _made_anew(self, answer: object) -> Decision:
        last, decision = self._remade
        if answer is last and decision is not None:
            return decision
        if not isinstance(answer, Decision):
            raise TypeError(f"answered a {type(answer).__name__}, not a Decision or None")
        if not isinstance(answer.admit, bool) or not isinstance(answer.reason, str):
            raise TypeError("answered an `admit` that is no bool or a `reason` that is no str")
        decision = Decision(answer.mode, answer.reason, answer.sequences, answer.admit)
        for mode in {decision.mode, *decision.sequences.values()}:
            if not self._supports(CacheMode(mode)):
                raise ValueError(f"answered {mode}, which this model does not support")
        self._remade = answer, decision
        return decision

    def _noted(self, answer: Decision | Fault | None) -> Decision | Fault | None:
        """The answer, counted."""
        if isinstance(answer, Fault):
            self._note_fault(answer)
        else:
            self._num_in_a_row = 0
        return answer

    def _note_fault(self, fault: Fault) -> None:
        self.num_faults += 1
        self._num_in_a_row += 1
        takes_over = self._num_in_a_row == MAX_FAULTS and not self._is_fallback
        if self._num_in_a_row <= MAX_FAULTS:
            text = fault.text[:_MAX_ERROR_CHARS]
            text += "; the fallback policy takes over" if takes_over else ""
            self._emit(PolicyFault(policy=self.name, error=text, faults=self.num_faults))
        if takes_over:
            self.close()
            self._put_in_charge(self._fallback, self._fallback_name)
            self._is_fallback = True


def _told(error: Exception) -> str:
    """One line, even for an exception that cannot be printed."""
    return " ".join("".join(traceback.format_exception_only(error)).split())
