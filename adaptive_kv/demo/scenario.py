"""What happens in a run: load, calm, the squeeze in steps, its release, the end."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adaptive_kv.demo.client import Api
from adaptive_kv.demo.load import NUM_CLIENTS, Clock, Load
from adaptive_kv.demo.processes import LADDER, Service, ServiceDiedError, Squeezer
from adaptive_kv.demo.room import HEADROOM_BYTES, MIB
from adaptive_kv.demo.screen import Screen
from adaptive_kv.demo.timeline import Phase, Sample, Timeline

_POLL_S = 0.2
_LEAST_LEFT_BYTES = 24 * MIB
_DEEP_BYTES = HEADROOM_BYTES // 7
"""Only from here on down is a window needed; another process may have caused one before."""
_HURRY = 0.4
"""How long everything takes where time is up, against what it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the parts of a run take at least (`_s`) and at most (`max_`), in seconds."""

    calm_s: float = 8.0
    step_s: float = 1.2
    """Between two orders to the squeeze, and twice that where the mode has changed."""
    shrink: float = 0.85
    """What each order leaves of what the one before has left."""
    hold_s: float = 6.0
    grow: float = 1.6
    after_s: float = 6.0
    max_wait_s: float = 40.0
    """For anything that the run waits for."""
    max_total_s: float = 100.0
    """From then on nothing is waited for but the last answers, and the rest goes faster."""


class Scenario:
    """One run against a service that listens. Fills the timeline."""

    def __init__(
        self,
        *,
        service: Service,
        api: Api,
        squeezer: Squeezer,
        timeline: Timeline,
        clock: Clock,
        screen: Screen,
        pace: Pace,
    ) -> None:
        self._service = service
        self._api = api
        self._squeezer = squeezer
        self._timeline = timeline
        self._clock = clock
        self._screen = screen
        self._pace = pace
        self._leave_bytes = HEADROOM_BYTES
        self._load = Load(api, timeline, clock)

    def run(self) -> None:
        """Everything in turn. Raises `ServiceDiedError` or `ApiError` where the service goes."""
        try:
            self._calm()
            self._squeeze()
            self._hold()
            self._release()
            self._end()
        finally:
            self._load.stop()

    def close(self) -> None:
        """Wait for the clients, once the service has answered or ended."""
        self._load.close()

    def _calm(self) -> None:
        self._begin("calm")
        self._leave(HEADROOM_BYTES)
        self._load.start()
        self._wait(lambda: self._num_running() >= NUM_CLIENTS and len(self._timeline.gaps) > 500)
        self._spend(self._pace.calm_s)

    def _squeeze(self) -> None:
        self._begin("squeeze")
        while not self._is_deep and self._leave_bytes > _LEAST_LEFT_BYTES:
            before = self._mode()
            self._leave(int(self._leave_bytes * self._pace.shrink))
            self._spend(self._pace.step_s)
            if self._mode() != before:
                self._spend(2 * self._pace.step_s)

    def _hold(self) -> None:
        self._begin("hold")
        # What a window has dropped costs nothing any more: without this, `int4` would soon fit.
        self._leave(int(self._leave_bytes * self._pace.shrink))
        self._spend(self._pace.hold_s)

    def _release(self) -> None:
        self._begin("release")
        while self._leave_bytes < HEADROOM_BYTES:
            self._leave(min(HEADROOM_BYTES, int(self._leave_bytes * self._pace.grow)))
            self._spend(self._pace.step_s)
        self._wait(lambda: set(self._timeline.samples[-1].modes.values()) <= {LADDER[0], "waiting"})
        self._spend(self._pace.after_s)

    def _end(self) -> None:
        self._begin("end")
        self._load.stop()
        self._wait(lambda: self._load.is_done, is_last=True)

    def _begin(self, name: str) -> None:
        self._timeline.phases.append(Phase(self._clock.now_s(), name))
        self._screen.tell(f"{name}")

    def _leave(self, leave_bytes: int) -> None:
        self._leave_bytes = leave_bytes
        samples = self._timeline.samples
        self._squeezer.leave(leave_bytes, samples[-1].cache_bytes if samples else 0)

    def _mode(self) -> str:
        return self._timeline.samples[-1].mode

    @property
    def _is_deep(self) -> bool:
        """Whether the last rung was reached, and not by an accident."""
        return self._mode() == LADDER[-1] and self._leave_bytes <= _DEEP_BYTES

    def _num_running(self) -> int:
        return sum(mode in LADDER for mode in self._timeline.samples[-1].modes.values())

    def _spend(self, duration_s: float) -> None:
        now_s = self._clock.now_s()
        is_late = now_s > self._pace.max_total_s
        self._watch(lambda: False, now_s + duration_s * (_HURRY if is_late else 1))

    def _wait(self, claim: Callable[[], bool], *, is_last: bool = False) -> None:
        """Until `claim` holds, or this has taken too long: the figures will tell."""
        until_s = self._clock.now_s() + self._pace.max_wait_s
        self._watch(claim, until_s if is_last else min(until_s, self._pace.max_total_s))

    def _watch(self, claim: Callable[[], bool], until_s: float) -> None:
        """Look several times a second until `claim` holds or time is up."""
        self._look()
        while not claim() and self._clock.now_s() < until_s:
            time.sleep(_POLL_S)
            self._look()

    def _look(self) -> None:
        if not self._service.is_alive:
            raise ServiceDiedError("died", "".join(self._service.last_words))
        status = self._api.status()
        held_bytes = self._squeezer.latest.held_bytes
        sample = _sample(status, self._clock.now_s(), held_bytes, self._leave_bytes)
        self._timeline.samples.append(sample)
        self._screen.show(self._timeline)


def _sample(status: Mapping[str, Any], time_s: float, held_bytes: int, leave_bytes: int) -> Sample:
    memory = status["memory"]
    return Sample(
        time_s=time_s,
        free_bytes=memory["free_bytes"],
        floor_bytes=memory["floor_bytes"],
        cache_bytes=memory["cache_bytes"],
        held_bytes=held_bytes,
        leave_bytes=leave_bytes,
        mode=status["mode"],
        modes={
            sequence["id"]: sequence["mode"]
            if sequence["state"] == "running"
            else sequence["state"]
            for sequence in status["sequence_list"]
        },
        tokens_per_s=status["load"]["tokens_per_s"],
    )
