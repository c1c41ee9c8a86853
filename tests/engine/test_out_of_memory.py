"""Memory that is refused: at every single moment, for good, and for a while."""

import functools
import operator
from pathlib import Path

import pytest
import torch
from engines import (
    EXACT,
    KIB,
    LADDER,
    MIB,
    STEP_S,
    Faults,
    Memory,
    Stand,
    check,
    check_empty,
    faulty_attention,
    is_as_wanted,
    make_stand,
    weights_bytes,
)
from models import prompt

from adaptive_kv.engine.sequence import State
from adaptive_kv.events import Oom, OomAverted, SequenceParked, SequenceResumed


def _scenario(faults: Faults, ladder: tuple[str, ...]) -> Stand:
    """Three ragged requests, one of them at another mode by its allow-list."""
    stand = make_stand(faults=faults, cache={"ladder": ladder}, server={"max_tokens_per_step": 64})
    stand.post(prompt(70, seed=1), 6)
    stand.post(prompt(20, seed=2), 8, allow=["full"])
    stand.step(2)
    stand.post(prompt(45, seed=3), 5, allow=["full", "disabled"])
    with faulty_attention(faults):
        while stand.unfinished:
            stand.step()
            check(stand)
            assert stand.num_steps < 100
    return stand


@functools.cache
def _num_calls() -> int:
    faults = Faults()
    _scenario(faults, EXACT["ladder"])
    return faults.num_calls


def _check_saved(stand: Stand) -> None:
    for id_ in stand.requests:
        usage = stand.finished(id_).usage
        assert is_as_wanted(stand, id_) or not usage.exact
    check_empty(stand)


def test_memory_that_is_refused_once_at_any_moment_costs_nobody_a_token() -> None:
    """Slabs, workspace and every layer's attention, each in turn."""
    for k in range(1, _num_calls() + 1):
        stand = _scenario(Faults(functools.partial(operator.eq, k)), EXACT["ladder"])
        _check_saved(stand)
        assert all(stand.finished(id_).usage.exact for id_ in stand.requests)
        told = len(stand.of_type(OomAverted)) + len(stand.of_type(SequenceParked))
        assert told, f"nothing told of {k}"


def test_the_way_down_the_whole_ladder_loses_no_page_and_no_request() -> None:
    """Lossy rungs included: who keeps to full is untouched, the others own up to it."""
    for k in range(1, _num_calls(), 3):
        stand = _scenario(Faults(functools.partial(operator.eq, k)), LADDER)
        for id_ in stand.requests:
            assert is_as_wanted(stand, id_) or not stand.finished(id_).usage.exact
        assert is_as_wanted(stand, "r1")
        assert stand.finished("r1").usage.tokens_by_mode == {"full": 8}
        check_empty(stand)


@pytest.mark.parametrize("k", [1, 2, 9, 30])
def test_while_no_memory_comes_requests_wait_then_get_503_and_later_ones_are_served(k: int) -> None:
    stand = make_stand(faults=Faults(lambda n: n >= k), server={"max_wait_s": 50})
    ids = [stand.post(prompt(n, seed=n), 30) for n in (40, 90, 15)]
    with faulty_attention(stand.faults):
        stand.step(60)
        check(stand)
        assert not stand.ends, "they may still hope"
        stand.clock.ahead_s += 51
        stand.step(2)
    for id_ in ids:
        refusal = stand.failed(id_).refusal
        assert (refusal.status, refusal.code) == (503, "out_of_memory")
        assert refusal.retry_after_s
    assert {event.sequence for event in stand.of_type(Oom)} == set(ids)
    check_empty(stand)
    stand.faults.failing = lambda _: False
    later = stand.post(prompt(40), 5)
    stand.run()
    assert is_as_wanted(stand, later)
    check_empty(stand)


def test_memory_that_comes_back_in_time_lets_everyone_finish() -> None:
    stand = make_stand(faults=Faults(lambda n: 20 <= n < 60), cache=EXACT)
    for n in (40, 90, 15):
        stand.post(prompt(n, seed=n), 12)
    with faulty_attention(stand.faults):
        stand.run()
    assert all(is_as_wanted(stand, id_) for id_ in stand.requests)
    assert len(stand.of_type(SequenceParked)) == len(stand.of_type(SequenceResumed)) > 0
    check_empty(stand)


def test_who_cannot_go_on_even_alone_is_not_tried_again_at_full_speed() -> None:
    stand = make_stand(faults=Faults(lambda n: n > 20), server={"max_wait_s": 1000})
    stand.post(prompt(40), 30)
    stand.step(100)
    num_tries = len(stand.of_type(SequenceResumed))
    assert 2 < num_tries <= 100 * STEP_S + 2


def test_an_error_of_another_kind_is_not_taken_for_a_lack_of_memory() -> None:
    stand = make_stand()
    stand.post(prompt(9))

    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    stand.faults.ask = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        stand.step()


def test_a_request_that_never_fits_waits_for_its_time_and_delays_nobody() -> None:
    """Its own prefix is too long for the budget in every mode that it permits."""
    stand = make_stand(memory={"budget": weights_bytes() + 512 * KIB, "floor": 0})
    large = stand.post(prompt(900), 5, allow=["full"])
    small = stand.post(prompt(30), 5)
    for _ in range(60):
        stand.step()
        check(stand)
    assert is_as_wanted(stand, small)
    assert stand.finished(small)
    assert large not in stand.ends
    stand.clock.ahead_s += 61
    stand.step()
    assert stand.failed(large).refusal.code == "out_of_memory"
    check_empty(stand)


def test_a_whole_prefix_that_cannot_fit_is_never_started() -> None:
    stand = make_stand(memory={"budget": weights_bytes() + 6 * MIB, "floor": 0})
    whole = stand.post(prompt(900), 5, allow=["disabled"])
    other = stand.post(prompt(30), 5)
    stand.step(30)
    assert stand.finished(other)
    assert stand.sequence(whole).state is State.WAITING
    assert not stand.of_type(SequenceParked)


def test_a_sequence_that_fits_by_the_numbers_but_not_on_the_device_lets_others_go_first() -> None:
    stand = make_stand(server={"max_wait_s": 50})
    large = stand.post(prompt(300), 5)
    stand.step()

    def ask() -> None:
        if any(s.id == large for s in stand.scheduler.running):
            raise torch.OutOfMemoryError("too large")

    stand.faults.ask = ask  # type: ignore[method-assign]
    others = [stand.post(prompt(n, seed=n), 6) for n in (20, 40, 60)]
    for _ in range(80):
        stand.step()
        check(stand)
    assert all(is_as_wanted(stand, id_) and stand.finished(id_) for id_ in others)
    stand.clock.ahead_s += 51
    stand.step()
    assert stand.failed(large).refusal.code == "out_of_memory"
    check_empty(stand)


@pytest.mark.parametrize("budget_kib", [500, 550, 600, 700, 1000])
def test_a_tight_budget_makes_sequences_take_turns_and_all_finish(budget_kib: int) -> None:
    """However tight, as long as each fits alone: no park and resume without progress."""
    stand = make_stand(
        memory={"budget": weights_bytes() + budget_kib * KIB, "floor": 0},
        cache={"ladder": ("full",), "slab": 16 * KIB},
        server={"max_wait_s": 1e5},
    )
    for n in (33, 40, 9, 25, 14):
        stand.post(prompt(n, seed=n), 20)
    while stand.unfinished:
        stand.step()
        check(stand)
        assert stand.num_steps < 100
    assert all(is_as_wanted(stand, id_) for id_ in stand.requests)
    assert len(stand.of_type(SequenceParked)) <= 15
    check_empty(stand)


def test_a_floor_that_breaks_at_once_is_packed_down_to_and_nobody_is_parked(
    tmp_path: Path,
) -> None:
    """By more than the scales that are kept ready are good for: more are taken in exchange."""
    memory = Memory(tmp_path / "memory.json", 32 * MIB)
    stand = make_stand(
        memory={"source": f"file:{memory.path}", "floor": 256 * KIB},
        cache={"ladder": ["full", "int4"]},
        server={"max_tokens_per_step": 512},
    )
    stand.memory = memory
    for seed in range(3):
        stand.post(prompt(700, seed=seed), 100)
    stand.step(20)
    held_bytes = stand.store.held_bytes
    num_slabs = held_bytes // stand.store.slab_bytes
    assert num_slabs > 8
    memory.neighbour_bytes = memory.total_bytes - 256 * KIB - held_bytes // 2
    stand.step(60)
    assert memory.free_bytes(stand.store.held_bytes) >= 256 * KIB
    stand.run()
    assert not stand.of_type(SequenceParked)
