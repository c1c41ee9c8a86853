"""What the worker has done since it started: counted with plain additions, read by anyone."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptive_kv.policy import CacheMode

STEP_BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
DECISION_BOUNDS_S = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1)


@dataclass(frozen=True, slots=True)
class Spread:
    """How many durations there were up to each of `bounds_s`, longer ones last; in seconds."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float


class Durations:
    """Counts durations by their length. One thread adds; any thread may ask for the `spread`."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(self._bounds_s) + 1)
        self._sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds_s, duration_s)] += 1
        self._sum_s += duration_s

    def spread(self) -> Spread:
        """As it is now; the sum may lack the newest one."""
        return Spread(self._bounds_s, tuple(self._counts), self._sum_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tallied:
    """What was done so far."""

    tokens_by_mode: Mapping[CacheMode, int]
    """Generated, whatever became of their requests."""
    steps: Spread
    decisions: Spread


class Tally:
    """Added to by the worker, a few additions per step; any thread may ask for the `so_far`."""

    def __init__(self) -> None:
        self._tokens_by_mode: dict[CacheMode, int] = {}
        self._steps = Durations(STEP_BOUNDS_S)
        self._decisions = Durations(DECISION_BOUNDS_S)

    def add_decision(self, duration_s: float) -> None:
        """Policy and guard took so long over one reading."""
        self._decisions.add(duration_s)

    def add_step(self, duration_s: float, decoded: Mapping[CacheMode, int]) -> None:
        """A step that ran the model took so long and gave each of `decoded` one token."""
        self._steps.add(duration_s)
        for mode, num_tokens in decoded.items():
            self._tokens_by_mode[mode] = self._tokens_by_mode.get(mode, 0) + num_tokens

    def so_far(self) -> Tallied:
        """Everything since the start."""
        return Tallied(
            tokens_by_mode=self._tokens_by_mode.copy(),
            steps=self._steps.spread(),
            decisions=self._decisions.spread(),
        )
