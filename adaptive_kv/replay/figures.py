"""What a policy made of a trace, in figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adaptive_kv.policy import CacheMode

MAX_GAP_S = 10.0
"""Two moments further apart than this have a stop of the service between them, not a state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One policy on one trace."""

    policy: str
    seconds: float
    under_floor_s: float
    worst_depth_bytes: int
    """How far below the floor free memory was at worst; 0 if never."""
    rescues: int | None
    """How often pages would not have fitted, and the service went down by itself; this and the
    next two are None for the record, which does not tell."""
    parked: int | None
    rejected: int | None
    """Sequences that found no memory for as long as the service waits, or as they were recorded."""
    switches_down: int
    """Of single sequences."""
    switches_up: int
    mode_changes: int
    """Of the service."""
    tokens: int
    """Generated between two moments of the trace."""
    late_share: float
    """Of the tokens, those whose sequence was parked or not let in when they were recorded."""
    exact_share: float
    """Of the tokens, those of sequences that no lossy mode had touched yet."""
    share_by_mode: Mapping[str, float]
    mean_cache_bytes: int
    policy_faults: int

    @property
    def lossy_share(self) -> float:
        """Of the tokens, those generated in a mode that is not exact."""
        shares = self.share_by_mode.items()
        return sum(share for mode, share in shares if not CacheMode(mode).is_exact)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"lossy_share": round(self.lossy_share, 4)}


class Ledger:
    """Adds up a replay, interval by interval."""

    def __init__(self) -> None:
        self.seconds = self.under_floor_s = 0.0
        self.worst_depth_bytes = 0
        self.counts: Counter[str] = Counter()
        self._cache_byte_s = 0.0
        self._tokens: Counter[CacheMode] = Counter()
        self._num_late = self._num_exact = 0

    def spend(
        self, duration_s: float, room_bytes: tuple[int, int], cache_bytes: tuple[int, int]
    ) -> None:
        """An interval; `room_bytes` above the floor (negative: below) at its start and its end."""
        if not 0 < duration_s <= MAX_GAP_S:
            return
        self.seconds += duration_s
        self._cache_byte_s += duration_s * sum(cache_bytes) / 2
        lowest, highest = min(room_bytes), max(room_bytes)
        if lowest < 0:
            self.worst_depth_bytes = max(self.worst_depth_bytes, -lowest)
            share = 1.0 if highest <= 0 else -lowest / (highest - lowest)
            self.under_floor_s += share * duration_s

    def generate(self, num_tokens: int, mode: CacheMode | None, *, is_exact: bool) -> None:
        """Tokens of one sequence; in no mode while it is parked."""
        if mode is None:
            self._num_late += num_tokens
        else:
            self._tokens[mode] += num_tokens
            self._num_exact += num_tokens * is_exact

    def figures(
        self, policy: str, ladder: Sequence[CacheMode], *, is_record: bool = False
    ) -> Figures:
        """The sum."""
        in_time = sum(self._tokens.values())
        num_tokens = in_time + self._num_late
        order = [*ladder, *sorted(self._tokens.keys() - set(ladder))]
        return Figures(
            policy=policy,
            seconds=round(self.seconds, 1),
            under_floor_s=round(self.under_floor_s, 2),
            worst_depth_bytes=self.worst_depth_bytes,
            tokens=num_tokens,
            late_share=_share(self._num_late, num_tokens),
            exact_share=_share(self._num_exact, num_tokens),
            share_by_mode={mode: _share(self._tokens[mode], num_tokens) for mode in order},
            mean_cache_bytes=round(self._cache_byte_s / self.seconds) if self.seconds else 0,
            rescues=None if is_record else self.counts["rescues"],
            parked=None if is_record else self.counts["parked"],
            rejected=None if is_record else self.counts["rejected"],
            switches_down=self.counts["switches_down"],
            switches_up=self.counts["switches_up"],
            mode_changes=self.counts["mode_changes"],
            policy_faults=self.counts["policy_faults"],
        )


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
