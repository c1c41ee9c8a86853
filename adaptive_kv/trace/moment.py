"""What a trace keeps of one reading and of what was ordered upon it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from adaptive_kv.policy import CacheMode, Device, Latency


class Seen(NamedTuple):
    """One running sequence. `number` stands for its id."""

    number: int
    num_tokens: int
    mode: CacheMode
    cache_bytes: int
    exact: bool
    priority: int = 0
    allow: frozenset[CacheMode] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One reading, rounded; `time_s` is seconds since the recording began.

    `step_bytes` and `token_s` are by mode what a step would need besides pages and take per token.
    """

    time_s: float
    step: int
    total_bytes: int
    free_bytes: int
    floor_bytes: int
    weights_bytes: int
    cache_bytes: int
    source: str
    sample_age_s: float
    latency: Latency
    waiting: int
    tokens_per_s: float
    device: Device
    mode: CacheMode
    step_bytes: Mapping[CacheMode, int]
    token_s: Mapping[CacheMode, float | None]
    sequences: tuple[Seen, ...]
    ordered: CacheMode
    """The mode of the service from then on."""
    code: str
    reason: str
    admit: bool
