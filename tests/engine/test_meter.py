"""Latency and throughput as running sequences see them."""

import pytest

from adaptive_kv.engine.meter import Meter
from adaptive_kv.policy import CacheMode, Latency

FULL, INT4 = CacheMode("full"), CacheMode("int4")


def test_nothing_is_known_before_the_first_token() -> None:
    meter = Meter()
    assert meter.latency() == Latency(token_s=None, p50_s=None, p95_s=None)
    assert meter.token_s_by_mode() == {}
    assert meter.tokens_per_s(5.0) == 0.0


def test_a_step_that_only_prefills_is_no_token() -> None:
    meter = Meter()
    meter.add_step(1.0, 0.5, {})
    assert meter.latency().token_s is None


def test_percentiles_are_of_the_last_steps() -> None:
    meter = Meter()
    for number in range(101):
        meter.add_step(number, number / 100, {FULL: 1})
    latency = meter.latency()
    assert latency.token_s == 1.0
    assert latency.p50_s == pytest.approx(0.5)
    assert latency.p95_s == pytest.approx(0.95)


def test_latency_of_a_mode_comes_from_steps_in_that_mode_alone() -> None:
    meter = Meter()
    meter.add_step(1.0, 0.1, {FULL: 3})
    meter.add_step(2.0, 0.9, {FULL: 1, INT4: 1})
    meter.add_step(3.0, 0.2, {INT4: 1})
    assert meter.token_s_by_mode() == {FULL: 0.1, INT4: 0.2}


def test_a_step_that_also_heals_says_nothing_of_its_mode_but_is_seen() -> None:
    meter = Meter()
    meter.add_step(1.0, 0.1, {FULL: 3})
    for time_s in (2.0, 3.0, 4.0):
        meter.add_step(time_s, 0.9, {FULL: 3}, is_typical=False)
    assert meter.token_s_by_mode() == {FULL: 0.1}
    assert meter.latency().p50_s == 0.9


def test_what_a_step_usually_takes_is_not_what_one_takes_that_converts_or_heals() -> None:
    meter = Meter()
    assert meter.usual_s() is None
    meter.add_step(1.0, 0.4, {FULL: 1}, is_typical=False)
    assert meter.usual_s() == 0.4
    for time_s, mode in ((2.0, FULL), (3.0, INT4)):
        meter.add_step(time_s, time_s / 10, {mode: 1})
        meter.add_step(time_s, 0.9, {mode: 1}, is_typical=False)
        assert meter.usual_s() == time_s / 10


def test_throughput_counts_all_sequences_of_the_last_seconds_and_fades() -> None:
    meter = Meter()
    for number in range(11):
        meter.add_step(number / 10, 0.1, {FULL: 3, INT4: 1})
    assert meter.tokens_per_s(1.0) == pytest.approx(44)
    assert 0 < meter.tokens_per_s(4.0) < 44
    assert meter.tokens_per_s(100.0) == 0.0
