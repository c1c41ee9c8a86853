"""The public policy API: what a policy is shown and what it answers.

A policy is any callable `Reading -> Decision | None`; `None` means hold. Standard library only:
a policy and its tests run where no model and no GPU is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol, Self

from adaptive_kv.errors import UnknownModeError

_MODE = re.compile(
    r"(?P<disabled>disabled)"
    r"|(?:window:(?P<window>[1-9][0-9]{0,8})(?:\+(?P<packed>int8|int4))?)"
    r"|(?P<plain>full|int8|int4)"
)


@lru_cache(maxsize=256)
def _window(mode: str) -> int | None:
    found = _MODE.fullmatch(mode)
    assert found is not None
    return int(found["window"]) if found["window"] else None


class CacheMode(str):
    """How the cache of a sequence is kept, written as its string everywhere.

    `full`, `window:N`, `int8`, `int4`, `window:N+int8`, `window:N+int4` or `disabled`. It is a
    `str`: compare it with one, use it as a key, put it in JSON.

    Raises `UnknownModeError` (a `ValueError`) for any other string.
    """

    __slots__ = ()

    def __new__(cls, mode: str) -> Self:
        """Raise `UnknownModeError` unless `mode` is one of the seven forms."""
        if type(mode) is cls:
            return mode
        if not isinstance(mode, str) or _MODE.fullmatch(mode) is None:
            raise UnknownModeError(mode)
        return super().__new__(cls, mode)

    @property
    def window(self) -> int | None:
        """How many of the newest tokens are kept (sinks apart), or None where all are."""
        return _window(self)

    @property
    def page_format(self) -> str:
        """The format that pages age into: `full`, `int8` or `int4`."""
        return self.rsplit("+", 1)[-1] if self.endswith(("int8", "int4")) else "full"

    @property
    def is_disabled(self) -> bool:
        """Whether nothing is kept between steps."""
        return self == "disabled"

    @property
    def is_exact(self) -> bool:
        """Whether this mode by itself loses nothing (`full` and `disabled`)."""
        return self in {"full", "disabled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of the device at one moment, and what of it is ours."""

    total_bytes: int
    free_bytes: int
    """Free for us: free on the device plus what our allocator holds but does not use."""
    floor_bytes: int
    """To be left free on the device for others."""
    weights_bytes: int
    cache_bytes: int
    """Taken from the device for pages, used or not."""
    source: str
    sample_age_s: float

    @property
    def headroom_bytes(self) -> int:
        """What can still be taken above the floor; negative when the floor is broken."""
        return self.free_bytes - self.floor_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds per token as a running sequence sees it; None before the first token."""

    token_s: float | None
    p50_s: float | None
    p95_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much work there is."""

    running: int
    waiting: int
    """Sequences that wait for their first step, parked ones included."""
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """State of the device; None where it is not known."""

    temperature_c: float | None = None
    throttled: bool | None = None
    utilization: float | None = None
    """Share of the time in which the device worked, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one mode would cost for all sequences of this moment."""

    bytes: int
    """Pages that the mode keeps plus `transient_bytes`."""
    transient_bytes: int = 0
    """Of `bytes`, what only exists during a step or a switch."""
    token_s: float | None = None
    """Expected seconds per token; None while unknown on this box."""
    exact: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceInfo:
    """One running sequence, as a policy sees it."""

    id: str
    num_tokens: int
    mode: CacheMode
    cache_bytes: int
    priority: int = 0
    allow: frozenset[CacheMode] | None = None
    """The only modes that its request permits; None permits all."""
    exact: bool = True
    """Whether its next token would be as in a fresh full run; true again once it is healed."""

    def permits(self, mode: str) -> bool:
        """Whether this sequence's request permits `mode`."""
        return self.allow is None or mode in self.allow


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One immutable snapshot of memory, latency, load and costs, handed to the policy."""

    time_s: float
    """Monotonic; the only clock a policy needs."""
    step: int
    memory: Memory
    seconds_to_floor: float | None
    """When the trend of free memory meets the floor; None when it is not shrinking."""
    latency: Latency
    load: Load
    device: Device = Device()
    mode: CacheMode
    mode_age_s: float
    ladder: tuple[CacheMode, ...]
    costs: Mapping[CacheMode, Cost]
    """For every mode of the ladder and the present one; look up with a plain string."""
    sequences: Sequence[SequenceInfo] = ()
    """Those that run; immutable."""

    @property
    def pressure(self) -> float:
        """Share of what lies above the floor that is in use; over 1 when the floor is broken."""
        usable_bytes = self.memory.total_bytes - self.memory.floor_bytes
        used_bytes = self.memory.total_bytes - self.memory.free_bytes
        return used_bytes / usable_bytes if usable_bytes > 0 else float("inf")


_NO_SEQUENCES: Mapping[str, CacheMode] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy wants: a mode for all, exceptions by sequence id, and whether to admit.

    Modes may be given as strings. Raises `UnknownModeError` for a string that names no mode.
    """

    mode: CacheMode | str
    reason: str = ""
    sequences: Mapping[str, CacheMode | str] = field(default_factory=lambda: _NO_SEQUENCES)
    admit: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", CacheMode(self.mode))
        modes = {id_: CacheMode(mode) for id_, mode in self.sequences.items()}
        object.__setattr__(self, "sequences", MappingProxyType(modes))


class Policy(Protocol):
    """Anything that can be called with a reading and answers a decision, or None to hold."""

    def __call__(self, now: Reading, /) -> Decision | None:
        """Decide; quick, and without side effects on the reading."""
        ...
