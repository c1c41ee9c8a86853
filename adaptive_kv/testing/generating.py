"""Readings by the thousand, plausible and extreme, the same ones every time."""

from collections.abc import Iterator
from random import Random

from adaptive_kv.policy import Device, Reading, SequenceInfo
from adaptive_kv.testing.readings import DEFAULT_LADDER, make_costs, make_reading, make_sequence

_LADDERS = (("full",), ("full", "int8"), ("int4", "disabled"), ("window:64+int8", "window:16"))
_GIB = 2**30


def make_readings(num: int = 3000, *, seed: int = 0) -> Iterator[Reading]:
    """`num` readings in the order of their time; every fourth is extreme in some way.

    Memory from none to plenty and under the floor, from no sequence to dozens, ladders of one
    rung, modes off the ladder, samples of any age, latencies and forecasts known and unknown.
    """
    random, time_s = Random(seed), 100.0  # noqa: S311 - made up, not secret
    for step in range(num):
        time_s += random.choice((0.0, 0.02, 0.02, 0.05, 5.0))
        make = _extreme if step % 4 == 3 else _plausible
        yield make(random, time_s, step)


def _plausible(random: Random, time_s: float, step: int) -> Reading:
    mode = random.choice(DEFAULT_LADDER)
    token_s = random.uniform(0.005, 0.2)
    return make_reading(
        time_s=time_s,
        step=step,
        free_bytes=random.randrange(5 * _GIB),
        seconds_to_floor=random.choice((None, None, random.uniform(0, 60))),
        token_s=token_s,
        p50_s=token_s,
        p95_s=token_s * random.uniform(1, 3),
        waiting=random.choice((0, 0, 1, 9)),
        device=Device(temperature_c=random.uniform(30, 100), throttled=random.random() < 0.1),
        mode=mode,
        mode_age_s=random.uniform(0, 100),
        sequences=[_sequence(random, mode, number) for number in range(random.randrange(5))],
    )


def _extreme(random: Random, time_s: float, step: int) -> Reading:
    ladder = random.choice((DEFAULT_LADDER, *_LADDERS))
    mode = random.choice((*ladder, "window:9"))
    sequences = [_sequence(random, mode, number) for number in range(random.choice((0, 1, 40)))]
    num_tokens = random.choice((0, 1, sum(sequence.num_tokens for sequence in sequences)))
    unknown = random.random() < 0.5
    return make_reading(
        time_s=time_s,
        step=step,
        total_bytes=random.choice((0, 1, 8 * _GIB, 2**50)),
        free_bytes=random.choice((0, 1, _GIB, 2**50)),
        floor_bytes=random.choice((0, _GIB, 9 * _GIB)),
        weights_bytes=0,
        sample_age_s=random.choice((0.0, 5.0, float("inf"))),
        seconds_to_floor=random.choice((None, 0.0, 1e-9, 1e9)),
        token_s=None if unknown else 1e-6,
        p50_s=None if unknown else 1e-6,
        p95_s=None if unknown else 1e3,
        waiting=random.choice((0, 10_000)),
        tokens_per_s=0.0,
        mode=mode,
        mode_age_s=random.choice((0.0, 1e7)),
        ladder=ladder,
        costs=make_costs((*ladder, mode), num_tokens),
        sequences=sequences,
    )


def _sequence(random: Random, mode: str, number: int) -> SequenceInfo:
    allow = random.choice((None, None, ["full"], ["full", "int8"]))
    return make_sequence(
        f"seq-{number}",
        num_tokens=random.choice((1, 16, random.randrange(1, 200_000))),
        mode=random.choice(allow or (mode, mode, "full")),
        priority=random.choice((0, 0, -3, 7)),
        allow=allow,
    )
