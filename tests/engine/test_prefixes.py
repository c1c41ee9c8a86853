"""Sequences that begin alike: what they share, what they say, and who gives way to whom."""

import functools
import operator
from pathlib import Path

import pytest
from engines import (
    EXACT,
    KIB,
    LADDER,
    MIB,
    Faults,
    Memory,
    Stand,
    check,
    check_empty,
    faulty_attention,
    is_as_wanted,
    make_stand,
    pages_of,
    wanted,
    weights_bytes,
)
from models import prepared, prompt

from adaptive_kv.cache.page import Page
from adaptive_kv.events import (
    Event,
    Healed,
    ModeChanged,
    OomAverted,
    SequenceParked,
    SequenceSwitched,
)

_COMMON = prompt(150, seed=5)
"""Two whole blocks after the sinks: 144 tokens."""
_NUM_BLOCKS_TOKENS = 144
_ROOMY = {"max_tokens_per_step": 512}
_MODES = (*LADDER, "window:64", "window:64+int8")


def _two_alike(stand: Stand, num_new: int = 60) -> list[str]:
    """The second comes while the first one runs; both are prefilled."""
    first = stand.post(_COMMON, num_new)
    stand.step(2)
    second = stand.post([*_COMMON, *prompt(30, seed=6)], num_new)
    stand.step(2)
    check(stand)
    return [first, second]


def _two_in_step(stand: Stand, num_new: int = 60) -> list[str]:
    """Both find what a third one has left, and are equally long."""
    stand.post(_COMMON, 1)
    stand.run()
    ids = [stand.post([*_COMMON, *prompt(30, seed=seed)], num_new) for seed in (6, 7)]
    stand.step(2)
    return ids


def _shared(stand: Stand, first: str, second: str) -> list[Page]:
    """The very same pages."""
    others = set(pages_of(stand.sequence(second).cache))
    return [page for page in pages_of(stand.sequence(first).cache) if page in others]


def _sum_of_costs(stand: Stand) -> int:
    """What the cost table says of everybody in the mode that each has."""
    gauge = stand.engine.worker._gauge
    return sum(gauge.pages_bytes(s.mode, s) for s in stand.scheduler.running)


# What is answered


@pytest.mark.parametrize("mode", _MODES)
def test_answers_are_those_without_sharing_in_every_mode(mode: str) -> None:
    """As long as those who share want the same; else what they share is more exact than alone."""
    answers = []
    for is_on in (True, False):
        stand = make_stand(server=_ROOMY, cache={"prefix": is_on, "heal": False})
        ids = _two_in_step(stand)
        stand.pin(mode)
        for _ in range(20):
            stand.step()
            check(stand)
        stand.pin("full")
        stand.run()
        answers.append([stand.output(id_) for id_ in ids])
        cached = [stand.finished(id_).usage.num_cached_tokens for id_ in ids]
        assert cached == 2 * [_NUM_BLOCKS_TOKENS * is_on]
        check_empty(stand)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt_oss", "mistral"])
def test_answers_are_those_of_generate_whatever_windows_a_model_has(family: str) -> None:
    """A window of 32 tokens hides the first blocks; the next turn of a chat needs only the last."""
    stand = make_stand(prepared(family), server=_ROOMY)
    first = stand.post(_COMMON, 60)
    stand.run()
    turn = [*_COMMON, *stand.output(first), *prompt(20, seed=7)]
    second = stand.post(turn, 20)
    stand.run()
    assert stand.output(second) == wanted(tuple(turn), 20, family)
    assert stand.finished(second).usage.num_cached_tokens == 208
    check_empty(stand)


def test_a_chat_goes_on_with_what_its_turns_before_have_left() -> None:
    stand = make_stand(server=_ROOMY)
    told: list[int] = []
    for turn in range(5):
        told += prompt(40, seed=turn)
        id_ = stand.post(told, 30)
        stand.run()
        assert is_as_wanted(stand, id_)
        num_before = max(0, len(told) - 41)  # the newest token of an answer was never stored
        num_whole = num_before - (num_before - 16) % 64 if num_before >= 16 else 0
        assert stand.finished(id_).usage.num_cached_tokens == num_whole
        told += stand.output(id_)
    check_empty(stand)


def test_a_prompt_longer_than_a_step_is_computed_once_for_all_who_come_with_it() -> None:
    stand = make_stand(server={"max_tokens_per_step": 64})
    ids = [stand.post(_COMMON, 10) for _ in range(3)]
    stand.run()
    assert all(is_as_wanted(stand, id_) for id_ in ids)
    cached = [stand.finished(id_).usage.num_cached_tokens for id_ in ids]
    assert cached[0] == 0
    assert min(cached[1:]) >= 80


def test_what_came_in_one_step_shares_pages_once_they_are_whole() -> None:
    stand = make_stand(server=_ROOMY)
    ids = [stand.post(_COMMON, 10) for _ in range(2)]
    stand.step(2)
    assert len(_shared(stand, *ids)) == _NUM_BLOCKS_TOKENS // 8
    check(stand)
    stand.run()
    assert all(is_as_wanted(stand, id_) for id_ in ids)


def test_equal_tokens_after_different_ones_are_not_shared() -> None:
    stand = make_stand()
    stand.post(_COMMON, 2)
    stand.run()
    other = stand.post([*prompt(16, seed=8), *_COMMON[16:]], 5)
    stand.run()
    assert is_as_wanted(stand, other)
    assert stand.finished(other).usage.num_cached_tokens == 0


@pytest.mark.parametrize("mode", ["int8", "int4", "window:64", "disabled"])
def test_what_a_lossy_mode_has_touched_is_never_shared(mode: str) -> None:
    """The sinks, which no mode touches while somebody runs, may be."""
    stand = make_stand(server=_ROOMY)
    first = stand.post(_COMMON, 60, allow=[mode])
    stand.step(30)
    exact = stand.post(_COMMON, 20, allow=["full"])
    stand.run()
    after = stand.post(_COMMON, 20, allow=["full"])
    stand.run()
    assert stand.finished(exact).usage.num_cached_tokens <= 16
    assert is_as_wanted(stand, exact)
    assert is_as_wanted(stand, after)
    assert stand.finished(first)
    check_empty(stand)


def test_nothing_is_shared_or_kept_where_it_is_switched_off() -> None:
    stand = make_stand(cache={"prefix": False})
    for _ in range(2):
        id_ = stand.post(_COMMON, 5)
        stand.run()
        assert stand.finished(id_).usage.num_cached_tokens == 0
        assert stand.store.held_bytes == 0


# Switching


def test_shared_pages_are_converted_once_for_all_who_share_them() -> None:
    stand = make_stand(server=_ROOMY, cache={"heal": False})
    ids = _two_in_step(stand)
    assert len(_shared(stand, *ids)) == _NUM_BLOCKS_TOKENS // 8
    stand.pin("int4")
    stand.step(4)
    shared = [page.format for page in _shared(stand, *ids)]
    assert shared == ["full", "full", "int4", "int4"]  # the sinks first
    once_bytes = sum(map(stand.store.groups[0].page_bytes, shared))
    assert stand.store.used_bytes == _sum_of_costs(stand) - once_bytes
    stand.run()
    check_empty(stand)


def test_what_somebody_needs_full_stays_full_for_all_and_weighs_no_more_than_told() -> None:
    stand = make_stand(server=_ROOMY)
    full = stand.post(_COMMON, 20, allow=["full"])
    stand.step(2)
    other = stand.post([*_COMMON, *prompt(30, seed=6)], 60)
    stand.step(2)
    stand.pin("int4")
    while full in stand.unfinished:
        assert {page.format for page in _shared(stand, full, other)} == {"full"}
        assert stand.store.used_bytes <= _sum_of_costs(stand)
        stand.step()
        check(stand)
    assert is_as_wanted(stand, full)
    stand.step(2)
    assert "int4" in {page.format for page in pages_of(stand.sequence(other).cache)}
    assert stand.store.used_bytes == _sum_of_costs(stand)
    stand.run()
    check_empty(stand)


def test_what_is_healed_shares_what_is_exact_and_goes_on_as_fresh() -> None:
    stand = make_stand(server=_ROOMY)
    ids = [stand.post([*_COMMON, *prompt(n, seed=n)], 90) for n in (10, 30)]
    stand.step(3)
    stand.pin("int4")
    stand.step(5)
    stand.pin("full")
    while stand.unfinished:
        stand.step()
        check(stand)
    events = stand.of_type(Healed)
    assert {event.sequence for event in events} == set(ids)
    for event in events:
        request, output = stand.requests[event.sequence], stand.output(event.sequence)
        num_before = event.num_tokens - len(request.prompt_ids)
        before, after = output[:num_before], output[num_before:]
        assert after == wanted((*request.prompt_ids, *before), len(after))
    check_empty(stand)


# Memory


def _retain(stand: Stand) -> None:
    """Let a request leave something behind."""
    stand.post(_COMMON, 2)
    stand.run()
    assert stand.store.used_bytes == 0


def test_what_is_retained_counts_as_free_for_policies_and_as_held_for_everybody() -> None:
    stand = make_stand()
    _retain(stand)
    retained_bytes = stand.store.budget.reclaimable_bytes
    assert retained_bytes == _NUM_BLOCKS_TOKENS // 8 * stand.store.groups[0].page_bytes("full")
    gauge = stand.engine.worker._gauge
    seen = gauge.read(stand.clock(), 0, stand.engine.worker._controller).memory
    held = gauge.memory(stand.clock())
    assert held.cache_bytes == stand.store.held_bytes >= retained_bytes
    assert seen.cache_bytes == held.cache_bytes - retained_bytes
    assert seen.free_bytes == held.free_bytes + retained_bytes


def test_nothing_is_retained_on_a_sample_too_old_to_trust() -> None:
    stand = make_stand(memory={"max_age_s": 100})
    _retain(stand)
    stand.step()
    assert stand.store.budget.reclaimable_bytes > 0
    stand.clock.ahead_s += 101
    stand.step()
    assert stand.store.held_bytes == 0


def test_a_neighbour_who_wants_memory_gets_what_is_retained_before_anybody_is_switched(
    tmp_path: Path,
) -> None:
    memory = Memory(tmp_path / "memory.json", 4 * MIB)
    stand = make_stand(
        memory={"source": f"file:{memory.path}", "floor": 128 * KIB},
        policy={"name": "ladder", "options": {"hold_s": 0}},
        server=_ROOMY,
    )
    _retain(stand)
    stand.memory = memory
    running = stand.post(prompt(40, seed=9), 40)
    stand.step(2)
    budget, held_bytes = stand.store.budget, stand.store.held_bytes
    for left_kib in (256, 64, 0, -32):
        memory.neighbour_bytes = memory.total_bytes - held_bytes - 128 * KIB - left_kib * KIB
        stand.step(2)
        above_floor_bytes = memory.free_bytes(stand.store.held_bytes) - 128 * KIB
        assert budget.reclaimable_bytes <= above_floor_bytes + stand.store.slab_bytes
        assert above_floor_bytes >= 0
    assert stand.store.held_bytes <= held_bytes - 32 * KIB
    stand.run()
    assert is_as_wanted(stand, running)
    assert stand.finished(running).usage.tokens_by_mode == {"full": 40}
    switched: tuple[type[Event], ...] = (ModeChanged, SequenceSwitched, SequenceParked)
    assert not any(stand.of_type(kind) for kind in switched)


def test_a_broken_floor_is_mended_in_one_step_though_retained_pages_lie_among_others(
    tmp_path: Path,
) -> None:
    """Two grow page by page in turns, and one of them ends; hardly any time is left to move."""
    memory = Memory(tmp_path / "memory.json", 4 * MIB)
    stand = make_stand(
        memory={"source": f"file:{memory.path}", "floor": 128 * KIB},
        policy={"name": "fixed"},
        cache={"switch_share": 1e-9},
    )
    stand.memory = memory
    ended, running = (stand.post(prompt(n, seed=n), num) for n, num in ((8, 210), (9, 250)))
    while ended in stand.unfinished:
        stand.step()
    retained_bytes = stand.store.budget.reclaimable_bytes
    assert retained_bytes == 208 // 8 * stand.store.groups[0].page_bytes("full")
    free_bytes = memory.free_bytes(stand.store.held_bytes)
    memory.neighbour_bytes += free_bytes - 128 * KIB + retained_bytes // 2
    stand.step()
    assert memory.free_bytes(stand.store.held_bytes) >= 128 * KIB
    stand.run()
    assert is_as_wanted(stand, running)
    assert stand.finished(running).usage.tokens_by_mode == {"full": 250}


def test_a_tight_budget_admits_and_serves_as_if_nothing_were_retained() -> None:
    """As much as fits alone, one after the other, each with other tokens."""
    for num_prompt in (100, 200):
        limits = []
        for is_on in (False, True):
            limit_bytes = next(
                kib * KIB
                for kib in range(800, 2000, 20)
                if _serves_in_turn(num_prompt, kib * KIB, is_on=is_on)
            )
            limits.append(limit_bytes)
        assert limits[1] <= limits[0]


def _serves_in_turn(num_prompt: int, budget_bytes: int, *, is_on: bool) -> bool:
    stand = make_stand(
        memory={"budget": weights_bytes() + budget_bytes, "floor": 0},
        cache={"ladder": ("full",), "slab": 16 * KIB, "prefix": is_on},
    )
    for seed in range(3):
        stand.post(prompt(num_prompt, seed=seed), 4)
        for _ in range(20):
            stand.step()
        check(stand)
        if stand.unfinished or stand.of_type(OomAverted):
            return False
    return True


def _scenario(faults: Faults) -> Stand:
    """One has ended and is retained, two share with it, one is cancelled, a fourth one is alone."""
    stand = make_stand(faults=faults, cache={**EXACT, "slab": 16 * KIB})
    stand.post(_COMMON, 2)
    with faulty_attention(faults):
        _step_to(stand, 6)
        stand.post([*_COMMON, *prompt(20, seed=6)], 8)
        stand.post(_COMMON, 30)
        _step_to(stand, 8)
        stand.post(prompt(60, seed=2), 8)
        _step_to(stand, 10)
        stand.cancel("r2")
        while stand.unfinished - {"r2"}:
            _step_to(stand, stand.num_steps + 1)
            assert stand.num_steps < 100
    return stand


def _step_to(stand: Stand, num_steps: int) -> None:
    while stand.num_steps < num_steps:
        stand.step()
        check(stand)


def test_memory_that_is_refused_at_any_moment_costs_nobody_who_shares_a_token() -> None:
    clean = _scenario(Faults())
    assert clean.finished("r1").usage.num_cached_tokens == _NUM_BLOCKS_TOKENS
    for k in range(1, clean.faults.num_calls + 1):
        stand = _scenario(Faults(functools.partial(operator.eq, k)))
        for id_ in ("r0", "r1", "r3"):
            assert is_as_wanted(stand, id_)
            assert stand.finished(id_).usage.exact
        check_empty(stand)


def test_a_parked_sequence_leaves_shared_pages_to_the_others() -> None:
    stand = make_stand(server=_ROOMY)
    ids = _two_alike(stand)
    stand.engine.worker._rescue.park_last(1)
    check(stand)
    stand.run()
    assert all(is_as_wanted(stand, id_) for id_ in ids)
    assert len(stand.of_type(SequenceParked)) == 1
    check_empty(stand)
