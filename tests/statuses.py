"""Hand-made truths and events, for whatever publishes them."""

import time
from dataclasses import replace
from typing import Any

from adaptive_kv.engine.status import Health, PolicyStatus, SequenceStatus, Status
from adaptive_kv.events import (
    Drain,
    Event,
    Healed,
    ModeChanged,
    Oom,
    OomAverted,
    PolicyFault,
    RequestRejected,
    SensorFault,
    SensorRecovered,
    SequenceParked,
    SequenceResumed,
    SequenceSwitched,
)
from adaptive_kv.policy import CacheMode, Cost, Latency, Load, Memory

FULL, INT4 = CacheMode("full"), CacheMode("int4")
WINDOW = CacheMode("window:1024+int4")

EVERY_EVENT: tuple[Event, ...] = (
    ModeChanged(
        from_mode=FULL,
        to_mode=INT4,
        reason="pressure",
        duration_s=0.25,
        freed_bytes=4096,
        sequences=3,
    ),
    SequenceSwitched(
        from_mode=INT4,
        to_mode=WINDOW,
        reason="pressure",
        duration_s=0.01,
        freed_bytes=-16,
        sequence="a",
    ),
    OomAverted(to_mode=INT4, needed_bytes=10, freed_bytes=20),
    Oom(sequence="a", needed_bytes=10),
    PolicyFault(policy="mine", error="ValueError: no", faults=2),
    SensorFault(source="nvml", error="gone"),
    SensorRecovered(source="nvml"),
    RequestRejected(request="r1", code="context_length_exceeded"),
    SequenceParked(sequence="a", num_tokens=7, freed_bytes=4096, reason="floor"),
    SequenceResumed(sequence="a", num_tokens=7, parked_s=1.5),
    Healed(sequence="a", num_tokens=7, duration_s=0.5),
    Drain(running=2),
)
"""One of each type."""


def make_status(**changes: Any) -> Status:
    """A healthy status of this moment with two running sequences."""
    status = Status(
        time_s=time.monotonic(),
        step=7,
        health=Health.OK,
        is_ready=True,
        mode=FULL,
        mode_age_s=1.5,
        pinned=False,
        reason_code="policy",
        reason_text="room to spare",
        policy=PolicyStatus(name="ladder"),
        memory=Memory(
            total_bytes=1000,
            free_bytes=600,
            floor_bytes=100,
            weights_bytes=200,
            cache_bytes=64,
            source="file",
            sample_age_s=0.02,
        ),
        latency=Latency(token_s=0.01, p50_s=0.01, p95_s=None),
        load=Load(running=2, waiting=1, tokens_per_s=100.0),
        costs={FULL: Cost(bytes=64, transient_bytes=8, token_s=0.01), INT4: Cost(bytes=16)},
        num_sequences_by_mode={FULL: 1, INT4: 1},
        sequences=(
            SequenceStatus(
                id="a", state="running", mode=FULL, num_tokens=5, cache_bytes=64, exact=True
            ),
        ),
    )
    return replace(status, **changes)
