"""Readings made up for tests: a plausible, quiet box, except for what is given."""

from collections.abc import Iterable, Mapping, Sequence

from adaptive_kv.policy import (
    CacheMode,
    Cost,
    Device,
    Latency,
    Load,
    Memory,
    Reading,
    SequenceInfo,
)

DEFAULT_LADDER = ("full", "int8", "int4", "window:1024+int4", "disabled")

_GIB = 2**30
_PAGE_SHARE = {"full": 1.0, "int8": 0.53, "int4": 0.28}
_TOKEN_S = {"full": 0.020, "int8": 0.016, "int4": 0.014}


def make_costs(
    modes: Iterable[str], num_tokens: int, *, token_bytes: int = 128 * 2**10
) -> dict[CacheMode, Cost]:
    """A plausible cost table for one sequence of `num_tokens`, `token_bytes` of cache each."""
    return {CacheMode(mode): _cost(CacheMode(mode), num_tokens, token_bytes) for mode in modes}


def _cost(mode: CacheMode, num_tokens: int, token_bytes: int) -> Cost:
    if mode.is_disabled:
        transient_bytes = num_tokens * token_bytes // 8
        return Cost(bytes=transient_bytes, transient_bytes=transient_bytes, token_s=0.9)
    num_kept = num_tokens if mode.window is None else min(num_tokens, mode.window + 16)
    num_bytes = int(num_kept * token_bytes * _PAGE_SHARE[mode.page_format])
    return Cost(bytes=num_bytes, token_s=_TOKEN_S[mode.page_format], exact=mode.is_exact)


def make_reading(
    *,
    time_s: float = 100.0,
    step: int = 1000,
    total_bytes: int = 8 * _GIB,
    free_bytes: int = 4 * _GIB,
    floor_bytes: int = _GIB // 4,
    weights_bytes: int = 2 * _GIB,
    cache_bytes: int | None = None,
    source: str = "nvml",
    sample_age_s: float = 0.02,
    seconds_to_floor: float | None = None,
    token_s: float | None = 0.02,
    p50_s: float | None = 0.02,
    p95_s: float | None = 0.03,
    running: int | None = None,
    waiting: int = 0,
    tokens_per_s: float = 50.0,
    device: Device | None = None,
    mode: str = "full",
    mode_age_s: float = 60.0,
    ladder: Sequence[str] = DEFAULT_LADDER,
    costs: Mapping[CacheMode, Cost] | Mapping[str, Cost] | None = None,
    sequences: Sequence[SequenceInfo] | None = None,
) -> Reading:
    """A reading of a plausible, quiet box, except for what is given.

    One running sequence of 8192 tokens unless `sequences` are given; costs follow from the
    sequences' lengths unless `costs` are given. Raises `UnknownModeError` for an unknown mode.
    """
    now = CacheMode(mode)
    rungs = tuple(CacheMode(rung) for rung in ladder)
    if sequences is None:
        sequences = (make_sequence(mode=now),)
    if cache_bytes is None:
        cache_bytes = sum(sequence.cache_bytes for sequence in sequences)
    num_tokens = sum(sequence.num_tokens for sequence in sequences)
    table = (
        make_costs((*rungs, now), num_tokens)
        if costs is None
        else {CacheMode(key): cost for key, cost in costs.items()}
    )
    return Reading(
        time_s=time_s,
        step=step,
        memory=Memory(
            total_bytes=total_bytes,
            free_bytes=free_bytes,
            floor_bytes=floor_bytes,
            weights_bytes=weights_bytes,
            cache_bytes=sum(s.cache_bytes for s in sequences)
            if cache_bytes is None
            else cache_bytes,
            source=source,
            sample_age_s=sample_age_s,
        ),
        seconds_to_floor=seconds_to_floor,
        latency=Latency(token_s=token_s, p50_s=p50_s, p95_s=p95_s),
        load=Load(
            running=len(sequences) if running is None else running,
            waiting=waiting,
            tokens_per_s=tokens_per_s,
        ),
        device=device or Device(),
        mode=now,
        mode_age_s=mode_age_s,
        ladder=rungs,
        costs=table,
        sequences=tuple(sequences),
    )


def make_sequence(
    id: str = "seq-0",  # noqa: A002 - the field is called so
    *,
    num_tokens: int = 8192,
    mode: str = "full",
    cache_bytes: int | None = None,
    priority: int = 0,
    allow: Iterable[str] | None = None,
    exact: bool | None = None,
) -> SequenceInfo:
    """A running sequence whose bytes and exactness follow from its mode unless they are given."""
    now = CacheMode(mode)
    cost = _cost(now, num_tokens, 128 * 2**10)
    return SequenceInfo(
        id=id,
        num_tokens=num_tokens,
        mode=now,
        cache_bytes=cost.bytes - cost.transient_bytes if cache_bytes is None else cache_bytes,
        priority=priority,
        allow=None if allow is None else frozenset(CacheMode(permitted) for permitted in allow),
        exact=cost.exact if exact is None else exact,
    )
