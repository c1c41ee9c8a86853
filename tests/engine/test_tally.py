"""What the worker counts: everything once, readable at any time by anyone."""

import threading

import pytest
from engines import make_stand
from models import prompt

from adaptive_kv.engine.tally import STEP_BOUNDS_S, Durations, Tally
from adaptive_kv.policy import CacheMode

FULL, INT4 = CacheMode("full"), CacheMode("int4")


def test_durations_are_counted_up_to_the_bound_that_holds_them() -> None:
    durations = Durations((0.1, 1.0))
    for duration_s in (0.05, 0.1, 0.5, 7.0):
        durations.add(duration_s)
    spread = durations.spread()
    assert spread.counts == (2, 1, 1)
    assert spread.sum_s == pytest.approx(7.65)


def test_a_step_that_only_prefills_is_a_step_without_tokens() -> None:
    tally = Tally()
    tally.add_step(0.01, {})
    assert sum(tally.so_far().steps.counts) == 1
    assert tally.so_far().tokens_by_mode == {}


def test_what_was_read_does_not_change_afterwards() -> None:
    tally = Tally()
    tally.add_step(0.01, {FULL: 2})
    before = tally.so_far()
    tally.add_step(0.01, {FULL: 2, INT4: 1})
    assert before.tokens_by_mode == {FULL: 2}
    assert sum(before.steps.counts) == 1
    assert tally.so_far().tokens_by_mode == {FULL: 4, INT4: 1}


def test_reading_beside_the_worker_loses_nothing() -> None:
    tally, num_steps = Tally(), 20_000

    def work() -> None:
        for number in range(num_steps):
            tally.add_step(STEP_BOUNDS_S[number % 5], {CacheMode(f"window:{number % 50 + 1}"): 1})

    worker = threading.Thread(target=work)
    worker.start()
    seen = []
    while worker.is_alive():
        seen.append(sum(tally.so_far().steps.counts))
    worker.join()
    assert seen == sorted(seen)
    assert sum(tally.so_far().tokens_by_mode.values()) == num_steps
    assert sum(tally.so_far().steps.counts) == num_steps


def test_an_engine_tallies_every_step_that_ran_the_model_and_every_token() -> None:
    stand = make_stand()
    ids = [stand.post(prompt(30, seed=n), 6 + n) for n in range(3)]
    stand.step(3)
    stand.pin("int4")
    stand.cancel(ids[2])
    while not set(ids[:2]) <= set(stand.ends):
        stand.step()
    stand.step(5)  # with nothing to do
    done = stand.engine.tally.so_far()
    num_tokens = sum(len(stand.output(id_)) for id_ in ids)
    assert sum(done.tokens_by_mode.values()) == num_tokens
    usages = [stand.finished(id_).usage.tokens_by_mode for id_ in ids[:2]]
    assert set(done.tokens_by_mode) == {FULL, INT4} == {mode for one in usages for mode in one}
    assert 0 < sum(done.steps.counts) <= stand.num_steps - 5
    assert sum(done.decisions.counts) == stand.num_steps
    assert min(done.steps.sum_s, done.decisions.sum_s) > 0


def test_what_the_cache_weighs_is_told_by_format() -> None:
    """All that is held, whatever happens to it."""
    stand = make_stand(cache={"recent": 16, "sinks": 16})
    stand.post(prompt(300), 60)
    stand.step(20)
    only_full = stand.store.bytes_by_format
    stand.pin("int4")
    stand.step(10)
    packed = stand.store.bytes_by_format
    assert only_full.get("int4", 0) == 0
    assert packed["int4"] > 0
    assert packed["full"] < only_full["full"]
    assert packed["free"] == stand.store.held_bytes - stand.store.used_bytes
    assert sum(packed.values()) == stand.store.held_bytes
    stand.run()
    assert {name for name, num_bytes in stand.store.bytes_by_format.items() if num_bytes} <= {
        "free"
    }
