"""Turns readings into orders: the policy proposes, the guard disposes."""

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from adaptive_kv.controller.asking import AnyPolicy, Asker
from adaptive_kv.controller.dwell import Dwell
from adaptive_kv.controller.guard import OBJECTIONS, Guard
from adaptive_kv.controller.rungs import Rungs
from adaptive_kv.events import Event
from adaptive_kv.policy import CacheMode, Decision, Policy, Reading, SequenceInfo
from adaptive_kv.tables import who


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What shall be done until the next reading."""

    mode: CacheMode
    """Of the service: what new sequences start in, and all that may shall follow."""
    modes: Mapping[str, CacheMode]
    """Target of every sequence in the reading; never one that its request forbids."""
    admit: bool
    allowance_bytes: int
    """How much may be taken from the device until the next reading; never negative."""
    reason_code: str
    """`start`, `policy`, `pinned`, `oom`, or why the guard holds back: `guard_stale`,
    `guard_floor`, `guard_dwell`, `guard_fit`."""
    reason_text: str
    """For people, one line."""


@dataclass(frozen=True, slots=True)
class _Ordered:
    """What a sequence was ordered last, and since when."""

    mode: CacheMode
    since_s: float


class _Wish(NamedTuple):
    """What is wanted of whom."""

    who: tuple[Hashable, ...]
    mode: str
    sequences: Mapping[str, str]


class Controller:
    """Asks `policy` at every reading and keeps it within what the guard permits.

    The guard, whatever the policy says: nothing is taken that would break the floor, or at all
    on a sample older than `max_age_s`; no way up then either, nor before the dwell time is over,
    nor into a mode whose cost would not fit; no sequence in a mode that its request forbids. The
    way down is always open.

    What calibration has struck is no rung and no policy's to choose; a pin, or a request that
    permits nothing else, may still name it. Raises `ConfigError` when no rung of `ladder` is left.
    """

    def __init__(
        self,
        policy: AnyPolicy,
        *,
        name: str,
        fallback: Policy,
        fallback_name: str = "ladder",
        ladder: Sequence[CacheMode],
        min_dwell_s: float,
        max_age_s: float,
        deadline_s: float,
        emit: Callable[[Event], None],
        is_supported: Callable[[CacheMode], bool] = lambda _: True,
        is_struck: Callable[[CacheMode], bool] = lambda _: False,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._make_rungs = partial(Rungs, supports=is_supported, is_struck=is_struck)
        self._rungs = self._make_rungs(ladder)
        self._asker = Asker(
            policy,
            name,
            fallback=fallback,
            fallback_name=fallback_name,
            supports=lambda mode: is_supported(mode) and not is_struck(mode),
            deadline_s=deadline_s,
            emit=emit,
            timer=timer,
        )
        self._max_age_s = max_age_s
        self._dwell = Dwell(min_dwell_s)
        self._mode = self._rungs.top
        self._mode_since_s: float | None = None  # until the first reading tells the time
        self._wanted = Decision(self._mode, "nothing decided yet")
        self._code = "start"
        self._standing_reason, self._standing_code = self._wanted.reason, self._code
        self._pinned: CacheMode | None = None
        self._fulfilled: _Wish | None = None
        self._order({})

    @property
    def ladder(self) -> tuple[CacheMode, ...]:
        """The configured modes that the model supports and that are not struck, top first."""
        return self._rungs.ladder

    @property
    def mode(self) -> CacheMode:
        """The mode of the service."""
        return self._mode

    @property
    def mode_since_s(self) -> float:
        """`time_s` of the reading that brought the mode; 0 before the first reading."""
        return self._mode_since_s or 0.0

    @property
    def min_dwell_s(self) -> float:
        """What the wait before a way up is at least."""
        return self._dwell.min_s

    @property
    def pinned(self) -> CacheMode | None:
        """The mode held by hand; its cost belongs into every reading."""
        return self._pinned

    @property
    def is_pinned(self) -> bool:
        """Whether a mode is held by hand."""
        return self._pinned is not None

    @property
    def name(self) -> str:
        """Of the policy in charge."""
        return self._asker.name

    @property
    def policy_status(self) -> str:
        """`ok`, `faulty` (its last answer was a fault) or `fallback` (it was replaced)."""
        return self._asker.status

    @property
    def num_faults(self) -> int:
        """Of all policies, since the start."""
        return self._asker.num_faults

    def check_ladder(self, ladder: Sequence[CacheMode]) -> tuple[CacheMode, ...]:
        """What of a ladder this model can have; any thread. Raises `ConfigError` if nothing."""
        return self._make_rungs(ladder).ladder

    def reload(
        self,
        policy: AnyPolicy,
        name: str,
        *,
        ladder: Sequence[CacheMode] | None = None,
        min_dwell_s: float | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """Put `policy` in charge from the next reading on, its faults in a row forgotten.

        The one before is closed, and a fallback that has taken over ends. What else is given
        replaces what was; a mode that is no longer on the ladder stays until it is changed.
        """
        if ladder is not None:
            self._rungs = self._make_rungs(ladder)
            self._fulfilled = None
        if min_dwell_s is not None:
            self._dwell.set_min(min_dwell_s)
        self._asker.reload(policy, name, deadline_s)

    def close(self) -> None:
        """Let go of the policy."""
        self._asker.close()

    def pin(self, mode: CacheMode) -> bool:
        """Want `mode` from the next reading on, without dwell; False if the model cannot have it.

        The guard still holds: a mode that does not fit is approached as far as it does.
        """
        if not self._rungs.supports(mode):
            return False
        self._pinned = mode
        self._want(Decision(mode, "pinned by hand"), "pinned")
        self._dwell.forget()
        self._order({})
        return True

    def unpin(self) -> None:
        """Return to the policy, from where the mode is now."""
        if self._pinned is not None:
            self._pinned = None
            self._want(Decision(self._mode, "returned to the policy"), "policy")

    def mode_for(
        self, allow: Collection[CacheMode] | None, wanted: CacheMode | None = None
    ) -> CacheMode | None:
        """What a sequence that permits `allow` gets when `wanted`, or the present mode, is ordered.

        The nearest permitted rung below `wanted`, or above it, or any permitted mode; None only
        if it permits nothing that the model supports.
        """
        return self._rungs.mode_for(allow, wanted or self._mode)

    def decide(self, reading: Reading) -> Orders:
        """Ask the policy, then the guard."""
        if self._mode_since_s is None:
            self._mode_since_s = reading.time_s
        if self._pinned is None:
            self._ask(reading)
        wish = _Wish(who(reading.sequences), self._wanted.mode, self._wanted.sequences)
        if wish == self._fulfilled:  # as in most steps
            return self._orders(reading, None)
        guard = Guard(reading, self._rungs, self._dwell, self._max_age_s, self.is_pinned)
        mode, objection = self._nearest(CacheMode(self._wanted.mode), reading, guard)
        self._move(mode, reading)
        has_all = self._order_sequences(reading, guard)
        self._fulfilled = wish if has_all and objection is None else None
        return self._orders(reading, objection)

    def step_down(self, reading: Reading) -> Orders | None:
        """Order everything that may go lower one rung lower, because memory ran out.

        Pins and policies are overruled, and the way back has to wait. None when no sequence
        could become smaller; nothing has changed then.
        """
        ordered = {s.id: self._lowered(s, reading) for s in reading.sequences}
        is_any = any(ordered[s.id].mode != self._last(s).mode for s in reading.sequences)
        below = self._rungs.next_below(self._mode, None, reading.costs)
        if not is_any and (reading.sequences or below is None):
            return None
        self._want(Decision(below or self._mode, "memory ran out"), "oom")
        self._move(CacheMode(self._wanted.mode), reading)
        self._order(ordered)
        return self._orders(reading, None)

    def _ask(self, reading: Reading) -> None:
        decision = self._asker.ask(reading)
        if decision is not None:
            self._want(decision, "policy")
        elif self._wanted.mode != self._mode:
            # To hold is to stay: what the guard has held back until now is given up.
            stay = replace(self._wanted, mode=self._mode, reason=self._standing_reason)
            self._want(stay, self._standing_code)

    def _want(self, decision: Decision, code: str) -> None:
        self._wanted = decision
        self._code = code

    def _move(self, mode: CacheMode, reading: Reading) -> None:
        if mode == self._mode:
            return
        if self._rungs.is_up(mode, self._mode, reading.costs):
            self._dwell.note_up(reading.time_s)
        else:
            self._dwell.note_down(reading.time_s)
        self._mode = mode
        self._mode_since_s = reading.time_s
        self._standing_reason, self._standing_code = self._wanted.reason, self._code

    def _nearest(
        self, target: CacheMode, reading: Reading, guard: Guard
    ) -> tuple[CacheMode, str | None]:
        """The mode nearest to `target` that the guard permits, and why it is not `target`."""
        objection = guard.objection(target, self._mode)
        if objection is None:
            return target, None
        for rung in self._rungs.between(target, self._mode, reading.costs):
            if guard.objection(rung, self._mode) is None:
                return rung, objection
        return self._mode, objection

    def _order_sequences(self, reading: Reading, guard: Guard) -> bool:
        """Order every sequence the mode of the service or its own, as far as the guard permits.

        Whether it permits it to all of them.
        """
        own, has_all = self._wanted.sequences, True
        ordered: dict[str, _Ordered] = {}
        for sequence in sorted(reading.sequences, key=lambda s: s.id in own):
            last = self._last(sequence)
            wanted = CacheMode(own.get(sequence.id, self._mode))
            target = self._rungs.mode_for(sequence.allow, wanted)
            if target is None:
                continue
            may_stay = sequence.permits(last.mode)
            if target == last.mode or (
                may_stay and not guard.take(target, last.mode, sequence, last.since_s)
            ):
                ordered[sequence.id] = last
                has_all &= target == last.mode
            else:
                ordered[sequence.id] = _Ordered(target, reading.time_s)
        self._order(ordered)
        return has_all

    def _order(self, ordered: dict[str, _Ordered]) -> None:
        self._fulfilled = None
        self._ordered = ordered
        self._modes = MappingProxyType({id_: last.mode for id_, last in ordered.items()})

    def _lowered(self, sequence: SequenceInfo, reading: Reading) -> _Ordered:
        """One rung lower, or as it was where nothing lower is permitted and smaller."""
        last = self._last(sequence)
        below = self._rungs.next_below(last.mode, sequence.allow, reading.costs)
        return last if below is None else _Ordered(below, reading.time_s)

    def _last(self, sequence: SequenceInfo) -> _Ordered:
        return self._ordered.get(sequence.id) or _Ordered(sequence.mode, float("-inf"))

    def _orders(self, reading: Reading, objection: str | None) -> Orders:
        """What stands now, as orders."""
        text = self._wanted.reason
        if objection is not None:
            text = f"{self._wanted.mode} is wanted ({text}), but {OBJECTIONS[objection]}"
        is_fresh = reading.memory.sample_age_s <= self._max_age_s
        return Orders(
            mode=self._mode,
            modes=self._modes,
            admit=self._wanted.admit,
            allowance_bytes=max(0, reading.memory.headroom_bytes) if is_fresh else 0,
            reason_code=objection or self._code,
            reason_text=text,
        )
