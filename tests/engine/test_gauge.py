"""The reading: what it says of memory and costs is what is there."""

import math
import time
from pathlib import Path

import pytest
from engines import KIB, LADDER, MIB, Memory, Stand, make_stand, weights_bytes
from models import prompt

from adaptive_kv.cache.costs import page_bytes
from adaptive_kv.engine.sequence import Sequence
from adaptive_kv.engine.speed import Speed
from adaptive_kv.events import OomAverted
from adaptive_kv.policy import CacheMode, Reading


def _read(stand: Stand) -> Reading:
    worker = stand.engine.worker
    return worker._gauge.read(stand.clock(), 0, worker._controller)


def _pages_bytes(stand: Stand, mode: str) -> int:
    cost = _read(stand).costs[CacheMode(mode)]
    return cost.bytes - cost.transient_bytes


def _decoding(num_prompts: tuple[int, ...] = (9, 150, 230)) -> Stand:
    stand = make_stand(server={"max_tokens_per_step": 512})
    for n in num_prompts:
        stand.post(prompt(n, seed=n), 100)
    stand.step(2)
    return stand


def _settled_bytes(stand: Stand, sequence: Sequence) -> int:
    cache = sequence.cache
    return sum(
        page_bytes(cache.mode, cache.num_stored, pages.group, stand.store.keep, gap_stop)
        for pages, gap_stop in zip(stand.store.groups, cache.gap_stops, strict=True)
    )


@pytest.mark.parametrize("mode", [*LADDER, "window:64", "window:64+int8"])
def test_what_a_mode_was_said_to_cost_is_what_its_pages_weigh_once_settled(mode: str) -> None:
    """A reading speaks of the tokens that are stored after the next step."""
    stand = _decoding()
    stand.pin(mode)
    stand.step(3)
    for _ in range(20):
        said_bytes = _pages_bytes(stand, mode)
        stand.step()
        stand.engine.worker._switcher.advance(stand.scheduler.running, max_s=None)
        assert all(s.cache.used_bytes == _settled_bytes(stand, s) for s in stand.scheduler.running)
        assert stand.store.used_bytes == said_bytes


def test_the_cost_of_a_mode_is_known_before_it_is_entered() -> None:
    for mode in ("int8", "int4", "disabled"):
        stand = _decoding()
        said_bytes = _pages_bytes(stand, mode)
        stand.pin(mode)
        stand.step()
        stand.engine.worker._switcher.advance(stand.scheduler.running, max_s=None)
        assert stand.store.used_bytes == said_bytes


def test_costs_are_told_for_the_ladder_the_mode_and_the_pin_with_their_exactness() -> None:
    stand = _decoding()
    stand.pin("window:128")
    stand.step()
    costs = _read(stand).costs
    assert set(costs) == {*LADDER, "window:128"}
    assert {mode for mode, cost in costs.items() if cost.exact} == {"full", "disabled"}
    assert all(cost.bytes >= cost.transient_bytes > 0 for cost in costs.values())


def test_without_sequences_nothing_costs_anything() -> None:
    costs = _read(make_stand()).costs
    assert all(cost.bytes == cost.transient_bytes == 0 for cost in costs.values())


def test_the_workspace_that_was_predicted_is_kept_to_by_the_budget() -> None:
    stand = _decoding()
    predicted = _read(stand).costs[CacheMode("full")].transient_bytes
    budget = stand.store.budget
    budget.limit_bytes = budget.used_bytes + predicted + stand.store.slab_bytes
    stand.step()
    assert not stand.of_type(OomAverted)
    assert all(s.cache.mode == "full" for s in stand.scheduler.running)
    assert len(stand.scheduler.running) == 3


def test_status_tells_of_memory_as_it_is_after_the_step() -> None:
    stand = _decoding()
    for _ in range(5):
        stand.step()
        memory = stand.status.memory
        assert memory.cache_bytes == stand.store.held_bytes == stand.engine.budget.cache_bytes
        assert memory.weights_bytes == weights_bytes()
        assert 0 <= memory.free_bytes <= memory.total_bytes


def test_slabs_taken_since_the_sample_are_not_free_any_more(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "memory.json", 8 * MIB)
    stand = make_stand(memory={"source": f"file:{memory.path}", "floor": 0})
    stand.engine.worker.step()
    before_bytes = stand.status.memory.free_bytes
    stand.post(prompt(200), 5)
    stand.engine.worker.step()
    assert stand.store.held_bytes > 0
    assert stand.status.memory.free_bytes == before_bytes - stand.store.held_bytes


def test_another_floor_is_heeded_by_the_trend_of_the_same_samples(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "memory.json", 8 * MIB)
    stand = make_stand(memory={"source": f"file:{memory.path}", "floor": 0})
    for taken_bytes in (1 * MIB, 2 * MIB):
        memory.neighbour_bytes = taken_bytes
        memory.write(0)
        time.sleep(0.6)  # a trend wants half a second
        stand.engine.sensor.poll()
    before_s = _read(stand).seconds_to_floor
    assert before_s is not None
    assert before_s > 0
    stand.engine.worker._gauge.set_floor(6 * MIB)
    assert _read(stand).seconds_to_floor == 0


def test_a_slab_taken_while_a_sample_was_on_its_way_counts_as_not_in_it(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "memory.json", 8 * MIB)
    stand = make_stand(memory={"source": f"file:{memory.path}", "floor": 0})
    stand.engine.worker.step()

    held_bytes = 0

    def sample_as_it_was_before() -> None:
        nonlocal held_bytes
        memory.write(held_bytes)
        stand.engine.sensor.poll()
        held_bytes = stand.store.held_bytes

    stand.faults.on_slab = sample_as_it_was_before
    stand.post(prompt(200), 30)
    for _ in range(25):
        stand.engine.worker.step()
        assert _read(stand).memory.free_bytes <= memory.free_bytes(stand.store.held_bytes)


def test_a_budget_is_all_the_memory_there_is() -> None:
    limit_bytes = weights_bytes() + 4 * MIB
    stand = make_stand(memory={"source": "budget", "budget": limit_bytes, "floor": 64 * KIB})
    stand.post(prompt(200), 50)
    stand.step(3)
    memory = stand.status.memory
    assert (memory.source, memory.total_bytes) == ("budget", limit_bytes)
    assert memory.free_bytes == limit_bytes - weights_bytes() - memory.cache_bytes
    assert memory.floor_bytes == 64 * KIB


def test_the_age_of_a_sample_is_told_by_the_worker_s_clock() -> None:
    stand = make_stand()
    stand.step()
    stand.clock.ahead_s = 100
    assert 100 <= _read(stand).memory.sample_age_s < 200


def test_load_and_sequences_are_those_of_the_moment() -> None:
    stand = _decoding((9, 150))
    stand.post(prompt(20), 5, priority=3, allow=["full", "int8"])
    stand.step(2)
    reading = _read(stand)
    assert (reading.load.running, reading.load.waiting) == (3, 0)
    first = reading.sequences[0]
    assert (first.id, first.priority, first.num_tokens) == ("r2", 3, 22)
    assert first.permits("int8")
    assert not first.permits("int4")
    assert sum(s.cache_bytes for s in reading.sequences) == stand.store.used_bytes
    assert reading.latency.token_s is not None
    assert math.isfinite(reading.load.tokens_per_s)


def test_the_forecast_counts_what_admitted_work_will_still_take(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "memory.json", 8 * MIB)
    stand = make_stand(memory={"source": f"file:{memory.path}", "floor": 0})
    stand.step()
    stand.post(prompt(900), 5)
    stand.step()
    (sequence,) = stand.scheduler.running
    promised_bytes = stand.engine.worker._gauge.promised_bytes()
    assert 0 < sequence.num_pending < 900
    assert promised_bytes > stand.store.slab_bytes

    def forecast_s(free_bytes: int) -> float | None:
        memory.neighbour_bytes = memory.total_bytes - stand.store.held_bytes - free_bytes
        memory.write(stand.store.held_bytes)
        stand.engine.sensor.poll()
        return _read(stand).seconds_to_floor

    assert forecast_s(promised_bytes // 2) == 0.0
    assert forecast_s(2 * promised_bytes) != 0.0
    stand.step(20)
    assert stand.engine.worker._gauge.promised_bytes() < stand.store.slab_bytes
    assert forecast_s(promised_bytes // 2) != 0.0


_SPEED = Speed(
    step_s=0.01,
    row_s=0.001,
    context_token_s={"full": 1e-4, "int8": 5e-5, "int4": 4e-5},
    new_token_s=1e-3,
)


def test_costs_tell_the_latency_of_every_mode_before_it_was_ever_used() -> None:
    stand = make_stand(speed=_SPEED)
    stand.post(prompt(90), 5)
    stand.step(0)
    stand.engine.worker._desk.take_mail(0)
    stand.engine.worker._admission.admit(CacheMode("full"))
    costs = _read(stand).costs
    assert {mode: cost.token_s for mode, cost in costs.items()} == {
        "full": pytest.approx(0.01 + 90 * 1e-4),
        "int8": pytest.approx(0.01 + 90 * 5e-5),
        "int4": pytest.approx(0.01 + 90 * 4e-5),
        "window:64+int4": pytest.approx(0.01 + (64 + 16) * 4e-5),
        "disabled": pytest.approx(0.01 + 90 * 1e-3),
    }


def test_the_latency_of_the_present_mode_is_what_was_seen_and_sets_the_others_right() -> None:
    stand = make_stand(speed=_SPEED)
    stand.post(prompt(90), 50)
    stand.step(10)
    reading = _read(stand)
    (sequence,) = stand.scheduler.running
    seen_s = stand.engine.worker._meter.token_s_by_mode()[CacheMode("full")]
    lengths = [len(sequence.tokens)]
    ratio = seen_s / _SPEED.token_s(CacheMode("full"), lengths, 16)
    assert reading.costs[CacheMode("full")].token_s == pytest.approx(seen_s)
    known_s = _SPEED.token_s(CacheMode("int8"), lengths, 16)
    assert reading.costs[CacheMode("int8")].token_s == pytest.approx(known_s * ratio)
