"""The truth of this moment, as the worker publishes it after every step."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from adaptive_kv.policy import CacheMode, Cost, Latency, Load, Memory


class Health(StrEnum):
    """ok; degraded (works, but something is wrong or work is parked); draining; failed."""

    OK = "ok"
    DEGRADED = "degraded"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStatus:
    """The policy in charge: `status` is `ok`, `faulty` or `fallback`."""

    name: str
    status: str = "ok"
    faults: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStatus:
    """One sequence for the dashboard: no text, no token ids."""

    id: str
    state: str
    """`waiting`, `running` or `parked`."""
    mode: CacheMode
    num_tokens: int
    cache_bytes: int
    exact: bool
    """Whether what follows is as in a fresh full run of the tokens so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything publishers show. `time_s` is monotonic and advances while the worker lives."""

    time_s: float
    step: int
    health: Health
    is_ready: bool
    """Whether a request would be taken now."""
    mode: CacheMode
    mode_age_s: float
    pinned: bool
    reason_code: str
    reason_text: str
    policy: PolicyStatus
    memory: Memory
    latency: Latency
    load: Load
    costs: Mapping[CacheMode, Cost]
    num_sequences_by_mode: Mapping[CacheMode, int]
    sequences: tuple[SequenceStatus, ...] = ()
