"""Readings and decisions of every shape, for Hypothesis."""

from hypothesis import strategies as st

from adaptive_kv.policy import (
    CacheMode,
    Cost,
    Decision,
    Device,
    Latency,
    Load,
    Memory,
    Reading,
    SequenceInfo,
)

numbers = st.integers(0, 2**60)
floats = st.floats(allow_nan=False)
maybe = st.none() | floats
modes = st.sampled_from(
    [CacheMode(m) for m in ("full", "int8", "int4", "window:9", "window:7+int8", "disabled")]
)
costs = st.builds(Cost, bytes=numbers, transient_bytes=numbers, token_s=maybe, exact=st.booleans())
sequences = st.builds(
    SequenceInfo,
    id=st.text(max_size=8),
    num_tokens=numbers,
    mode=modes,
    cache_bytes=numbers,
    priority=st.integers(),
    allow=st.none() | st.frozensets(modes),
    exact=st.booleans(),
)
readings = st.builds(
    Reading,
    time_s=floats,
    step=numbers,
    memory=st.builds(
        Memory,
        total_bytes=numbers,
        free_bytes=numbers,
        floor_bytes=numbers,
        weights_bytes=numbers,
        cache_bytes=numbers,
        source=st.text(max_size=8),
        sample_age_s=floats,
    ),
    seconds_to_floor=maybe,
    latency=st.builds(Latency, token_s=maybe, p50_s=maybe, p95_s=maybe),
    load=st.builds(Load, running=numbers, waiting=numbers, tokens_per_s=floats),
    device=st.builds(
        Device, temperature_c=maybe, throttled=st.none() | st.booleans(), utilization=maybe
    ),
    mode=modes,
    mode_age_s=floats,
    ladder=st.lists(modes, max_size=4).map(tuple),
    costs=st.dictionaries(modes, costs, max_size=4),
    sequences=st.lists(sequences, max_size=3).map(tuple),
)
decisions = st.builds(
    Decision,
    mode=modes,
    reason=st.text(max_size=20),
    sequences=st.dictionaries(st.text(max_size=5), modes, max_size=3),
    admit=st.booleans(),
)
