"""The course of a replay over time, for whoever draws it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from adaptive_kv.policy import CacheMode


@dataclass(slots=True)
class Course:
    """Lists of equal length, a moment each; times in seconds, the rest in bytes."""

    time_s: list[float] = field(default_factory=list)
    free_bytes: list[int] = field(default_factory=list)
    """As the policy saw it, before it answered; negative where more is taken than there is."""
    floor_bytes: list[int] = field(default_factory=list)
    cache_bytes: list[int] = field(default_factory=list)
    modes: list[Counter[CacheMode]] = field(default_factory=list)
    """How many running sequences are in which mode, after the answer."""

    def add(
        self,
        time_s: float,
        free_bytes: int,
        floor_bytes: int,
        cache_bytes: int,
        modes: Iterable[CacheMode],
    ) -> None:
        """One more moment."""
        self.time_s.append(time_s)
        self.free_bytes.append(free_bytes)
        self.floor_bytes.append(floor_bytes)
        self.cache_bytes.append(cache_bytes)
        self.modes.append(Counter(modes))
