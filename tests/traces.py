"""Small traces made up for tests: a header, readings and orders, and a recorder fed with them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import MappingProxyType

from adaptive_kv.controller import Orders
from adaptive_kv.policy import CacheMode, Device, Latency, Reading
from adaptive_kv.testing import make_reading, make_sequence
from adaptive_kv.trace import Header, Moment, Recorder, Seen
from adaptive_kv.trace.copying import write_trace
from adaptive_kv.trace.curve import Curve, measure

MIB = 2**20
LADDER = tuple(CacheMode(mode) for mode in ("full", "int8", "int4"))
_SHARES = {"full": 4, "int8": 2, "int4": 1, "disabled": 0}


def make_header(**changes: object) -> Header:
    """A model whose token weighs 64 KiB in full, half of that in int8, a quarter in int4."""
    values: dict[str, object] = {
        "version": "0",
        "model": "made-up",
        "policy": "ladder",
        "ladder": LADDER,
        "curves": {CacheMode(mode): make_curve(share) for mode, share in _SHARES.items()},
        "slab_bytes": MIB,
        "budget_bytes": None,
        "max_running": 16,
        "max_wait_s": 60.0,
        "min_dwell_s": 1.0,
        "max_age_s": 2.0,
    }
    return Header(**(values | changes))  # type: ignore[arg-type]


def make_curve(share: int) -> Curve:
    """So many quarters of what full weighs."""
    return measure(lambda n: -(-n // 16) * share * 2**18, regular_from=16, period_tokens=16)


def full_bytes(num_tokens: int) -> int:
    """What a sequence weighs in full."""
    return -(-num_tokens // 16) * MIB


def make_moment(
    time_s: float, others_left_bytes: int, sequences: Sequence[Seen] = (), **changes: object
) -> Moment:
    """Others leave so much to a cache in which `sequences` are; floor 16 MiB of 1 GiB."""
    used_bytes = sum(each.cache_bytes for each in sequences)
    held_bytes = -(-used_bytes // MIB) * MIB
    values: dict[str, object] = {
        "time_s": time_s,
        "step": round(time_s * 10),
        "total_bytes": 1024 * MIB,
        "free_bytes": others_left_bytes - held_bytes,
        "floor_bytes": 16 * MIB,
        "weights_bytes": MIB,
        "cache_bytes": held_bytes,
        "source": "nvml",
        "sample_age_s": 0.02,
        "latency": Latency(token_s=0.02, p50_s=0.02, p95_s=0.03),
        "waiting": 0,
        "tokens_per_s": 50.0,
        "device": Device(),
        "mode": LADDER[0],
        "step_bytes": dict.fromkeys(LADDER, 1000),
        "token_s": dict.fromkeys(LADDER, 0.02),
        "sequences": tuple(sequences),
        "ordered": LADDER[0],
        "code": "policy",
        "reason": "made up",
        "admit": True,
    }
    return Moment(**(values | changes))  # type: ignore[arg-type]


def seen(number: int, num_tokens: int, **changes: object) -> Seen:
    """A sequence in full, all its tokens stored."""
    values = {"mode": LADDER[0], "cache_bytes": full_bytes(num_tokens), "exact": True}
    return Seen(number=number, num_tokens=num_tokens, **(values | changes))  # type: ignore[arg-type]


def make_trace(file: Path, moments: Iterable[Moment], **changes: object) -> Path:
    """A trace file of these moments."""
    write_trace(file, make_header(**changes), moments)
    return file


def make_orders(mode: str = "full", **changes: object) -> Orders:
    """What a controller would have answered."""
    values: dict[str, object] = {
        "mode": CacheMode(mode),
        "modes": MappingProxyType({}),
        "admit": True,
        "allowance_bytes": 0,
        "reason_code": "policy",
        "reason_text": "made up",
    }
    return Orders(**(values | changes))  # type: ignore[arg-type]


def growing(num: int, *, period_s: float = 0.05, start_s: float = 1000.0) -> list[Reading]:
    """Readings of one sequence that grows by a token each time, and of a box that changes not."""
    return [
        make_reading(
            time_s=start_s + i * period_s,
            step=i,
            sequences=[make_sequence("secret-name", num_tokens=100 + i)],
        )
        for i in range(num)
    ]


def record(
    folder: Path, readings: Iterable[Reading], *, max_bytes: int = 8 * MIB, hz: float = 1.0
) -> Recorder:
    """A recorder that was shown `readings`, and closed."""
    recorder = Recorder(folder, make_header(), max_bytes=max_bytes, hz=hz)
    for reading in readings:
        recorder.note(reading, make_orders(reading.mode))
        while recorder.num_queued > 100:  # shown at the speed of a service, not of a loop
            pass
    recorder.close()
    return recorder
