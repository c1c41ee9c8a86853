"""Healing: what a lossy mode has left is recomputed, and what follows equals a fresh full run."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import (
    EXACT,
    KIB,
    MIB,
    STEP_S,
    Faults,
    Memory,
    Stand,
    check,
    check_empty,
    check_rest,
    faulty_attention,
    make_stand,
    slow_attention,
    wanted,
)
from models import prepared, prompt

from adaptive_kv.engine.sequence import Sequence
from adaptive_kv.events import Healed, ModeChanged, OomAverted
from adaptive_kv.policy import Reading

_NUM_NEW = 90
_LOSSY = ("int8", "int4", "window:64", "window:64+int4")
_ROOMY = {"max_tokens_per_step": 512}

families = pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gemma3_text", "gpt_oss", "mistral"]
)
"""One without a window of its own, and those that have one in all or in half of their layers."""
lossy = pytest.mark.parametrize("mode", _LOSSY)


def _continues_as_fresh(stand: Stand, event: Healed, family: str = "llama") -> bool:
    """Whether what came after an event is what a fresh run of everything before it gives."""
    request, output = stand.requests[event.sequence], stand.output(event.sequence)
    num_before = event.num_tokens - len(request.prompt_ids)
    before, after = output[:num_before], output[num_before:]
    assert after
    return after == wanted((*request.prompt_ids, *before), len(after), family)


def _went_through(mode: str, num_steps: int = 3, num_prompt: int = 150) -> tuple[Stand, Sequence]:
    """A sequence that was in `mode` for some steps and has just been ordered back to full."""
    stand = make_stand(server=_ROOMY)
    id_ = stand.post(prompt(num_prompt, seed=num_prompt), _NUM_NEW)
    stand.step(2)
    stand.pin(mode)
    stand.step(num_steps)
    stand.pin("full")
    return stand, stand.sequence(id_)


def _healing(mode: str = "int4") -> tuple[Stand, Sequence]:
    """A sequence whose shadow has some pages and is not there yet."""
    stand, sequence = _went_through(mode)
    while sequence.shadow_bytes == 0:
        stand.step()
        assert stand.num_steps < 20
    return stand, sequence


def _read(stand: Stand) -> Reading:
    worker = stand.engine.worker
    return worker._gauge.read(stand.clock(), 0, worker._controller)


# What follows


@families
@lossy
def test_what_follows_equals_a_fresh_full_run_alone(family: str, mode: str) -> None:
    rng = random.Random(f"{family} {mode}")
    stand = make_stand(prepared(family), server=_ROOMY)
    id_ = stand.post(prompt(150, seed=3), _NUM_NEW)
    stand.step(rng.randrange(1, 12))
    stand.pin(mode)
    stand.step(rng.randrange(1, 20))
    stand.pin("full")
    stand.run()
    (event,) = stand.of_type(Healed)
    assert event.sequence == id_
    assert _continues_as_fresh(stand, event, family)
    check_empty(stand)


@families
@lossy
def test_what_follows_equals_a_fresh_full_run_in_a_ragged_batch(family: str, mode: str) -> None:
    rng = random.Random(f"{family} {mode} ragged")
    stand = make_stand(prepared(family), server=_ROOMY)
    ids = [stand.post(prompt(n, seed=n), _NUM_NEW) for n in (110, 150, 201)]
    stand.step(rng.randrange(1, 12))
    stand.pin(mode)
    stand.step(rng.randrange(1, 12))
    stand.pin("full")
    while stand.unfinished:
        stand.step()
        check(stand)
    events = stand.of_type(Healed)
    inexact = [id_ for id_ in ids if not stand.finished(id_).usage.exact]
    assert sorted(event.sequence for event in events) == inexact != []
    assert all(_continues_as_fresh(stand, event, family) for event in events)
    check_empty(stand)


def test_without_healing_what_follows_does_not_equal_a_fresh_full_run() -> None:
    """Or the tests above would prove nothing."""
    stand = make_stand(server=_ROOMY, cache={"heal": False})
    id_ = stand.post(prompt(150, seed=3), _NUM_NEW)
    stand.step(2)
    stand.pin("window:64+int4")
    stand.step(20)
    stand.pin("full")
    stand.step(2)
    num_tokens = len(stand.sequence(id_).tokens)
    stand.run()
    assert not stand.of_type(Healed)
    assert not _continues_as_fresh(
        stand, Healed(sequence=id_, num_tokens=num_tokens, duration_s=0.0)
    )


# What is told


@lossy
def test_exact_turns_true_for_what_follows_and_stays_false_of_the_whole(mode: str) -> None:
    stand, sequence = _went_through(mode)
    told = []
    for _ in range(30):
        stand.step()
        (shown,) = stand.status.sequences
        assert shown.exact == sequence.is_exact == bool(stand.of_type(Healed))
        told.append(shown.exact)
    assert set(told) == {False, True}
    stand.run()
    assert not stand.finished(sequence.id).usage.exact


def test_it_is_told_once_with_what_was_recomputed_and_how_long_that_took() -> None:
    stand, sequence = _healing()
    num_steps = 1
    while not stand.of_type(Healed):
        num_tokens = len(sequence.tokens)
        stand.step()
        num_steps += 1
    stand.step(20)
    (event,) = stand.of_type(Healed)
    assert (event.sequence, event.num_tokens) == (sequence.id, num_tokens)
    assert event.duration_s >= (num_steps - 1) * STEP_S


def test_while_it_heals_every_step_still_gives_a_token() -> None:
    stand, sequence = _went_through("int4")
    while not stand.of_type(Healed):
        num_output = sequence.num_output
        stand.step()
        assert sequence.num_output == num_output + 1


def test_a_policy_sees_memory_as_if_nobody_were_healed() -> None:
    """Whoever needs what healing holds gets it, so nobody has to decide anything about it."""
    stand, sequence = _healing()
    during = _read(stand)
    published = stand.status.memory
    sequence.drop_shadow()
    after = _read(stand)
    assert during.sequences == after.sequences
    assert during.memory.cache_bytes < published.cache_bytes == stand.status.memory.cache_bytes
    stand.store.compact(64 * MIB)
    assert during.memory.cache_bytes >= stand.store.used_bytes


# How much of a step it takes


def _healed_by_step(token_s: float, share: float, num_tokens: int) -> tuple[Stand, list[int]]:
    """How many tokens each step recomputed, where one takes 100 s and `token_s` for each more."""
    stand = make_stand(server=_ROOMY, cache={"switch_share": share, "prefix": False})
    with slow_attention(stand.clock, lambda num_new: 100 + token_s * (num_new - 1)):
        id_ = stand.post(prompt(150), num_tokens)
        stand.step(2)
        stand.pin("int4")
        stand.step(3)
        stand.pin("full")
        sequence, num_stored, found = stand.sequence(id_), 0, []
        while not stand.of_type(Healed):
            stand.step()
            assert stand.num_steps < 500
            if sequence.shadow is not None:
                found.append(sequence.shadow.num_stored - num_stored)
                num_stored = sequence.shadow.num_stored
        stand.run()
    return stand, found


def test_a_step_recomputes_as_much_as_its_share_leaves_time_for() -> None:
    stand, found = _healed_by_step(token_s=10, share=0.25, num_tokens=_NUM_NEW)
    assert found[:4] == [0, 0, 0, 4], "quiet steps come first, then few tokens"
    assert set(found[4:]) == {0, 5}
    (event,) = stand.of_type(Healed)
    assert _continues_as_fresh(stand, event)


def test_now_and_then_a_step_shows_what_one_takes_without_it() -> None:
    _, found = _healed_by_step(token_s=20, share=0.25, num_tokens=300)
    assert [place for place, num_new in enumerate(found) if num_new == 0][:5] == [0, 1, 2, 18, 34]
    assert set(found[4:]) == {0, 2}


def test_it_ends_though_a_share_leaves_time_for_nothing() -> None:
    stand, found = _healed_by_step(token_s=1000, share=1e-9, num_tokens=300)
    assert set(found[4:]) == {0, 2}
    (event,) = stand.of_type(Healed)
    assert _continues_as_fresh(stand, event)


# Who is healed


def test_who_was_parked_is_exact_again_without_it() -> None:
    stand, sequence = _went_through("int4")
    stand.engine.worker._rescue.park_last(0)
    stand.step(3)
    assert sequence.is_exact
    stand.run()
    assert not stand.of_type(Healed)
    assert not stand.finished(sequence.id).usage.exact


def test_who_was_always_exact_is_left_alone() -> None:
    stand = make_stand(cache=EXACT)
    stand.post(prompt(90), 30)
    stand.step(3)
    stand.pin("disabled")
    stand.step(3)
    stand.pin("full")
    stand.run()
    assert not stand.of_type(Healed)


def test_who_ends_before_it_could_be_healed_is_left_alone() -> None:
    stand = make_stand(server=_ROOMY)
    stand.post(prompt(200), 12)
    stand.step(2)
    stand.pin("int4")
    stand.step(3)
    stand.pin("full")
    while stand.unfinished:
        stand.step()
        assert stand.store.used_bytes == sum(s.cache.used_bytes for s in stand.scheduler.running)
    assert not stand.of_type(Healed)


def test_it_begins_no_sooner_than_the_dwell_time_after_a_change_of_mode() -> None:
    stand = make_stand(server=_ROOMY, policy={"min_dwell_s": 10 * STEP_S})
    id_ = stand.post(prompt(100), _NUM_NEW)
    stand.step(2)
    check_rest(stand, id_, 10)


def test_it_pauses_while_another_prompt_is_prefilled() -> None:
    stand, sequence = _healing()
    assert sequence.shadow is not None
    stand.post(prompt(900), 4)
    num_stored = sequence.shadow.num_stored
    stand.step()
    assert (sequence.shadow and sequence.shadow.num_stored) == num_stored
    stand.step(2)
    assert sequence.shadow.num_stored > num_stored
    stand.run()
    (event,) = stand.of_type(Healed)
    assert _continues_as_fresh(stand, event)


# Who puts an end to it


def _pin_int8(stand: Stand) -> None:
    stand.pin("int8")


def _cancel(stand: Stand) -> None:
    stand.cancel("r0")


def _park(stand: Stand) -> None:
    stand.engine.worker._rescue.park_last(0)


def _fill_the_last_place(stand: Stand) -> None:
    stand.scheduler.max_running = 1
    stand.post(prompt(40), 4)


def _shrink_the_budget(stand: Stand) -> None:
    budget = stand.store.budget
    budget.limit_bytes = budget.used_bytes + 16 * KIB


@pytest.mark.parametrize(
    "happen", [_pin_int8, _cancel, _park, _fill_the_last_place, _shrink_the_budget]
)
@lossy
def test_all_its_pages_are_given_back_in_the_same_step(
    happen: Callable[[Stand], None], mode: str
) -> None:
    stand, sequence = _healing(mode)
    happen(stand)
    stand.step()
    assert sequence.shadow is None
    check(stand)
    assert stand.store.used_bytes == sum(s.cache.used_bytes for s in stand.scheduler.running)
    stand.store.budget.limit_bytes = None
    stand.step(_NUM_NEW + 10)
    check_empty(stand)


def test_a_neighbour_that_takes_the_memory_gets_it_before_anybody_goes_down(
    tmp_path: Path,
) -> None:
    memory = Memory(tmp_path / "memory.json", 8 * MIB)
    stand = make_stand(
        server=_ROOMY,
        memory={"source": f"file:{memory.path}", "floor": 128 * KIB},
        policy={"name": "ladder", "options": {"hold_s": 0}},
    )
    stand.memory = memory
    id_ = stand.post(prompt(200), _NUM_NEW)
    stand.step(2)
    stand.pin("int4")
    stand.step(2)
    stand.pin("full")
    sequence = stand.sequence(id_)
    while sequence.shadow_bytes < 64 * KIB:
        stand.step()
    held_bytes = stand.store.held_bytes
    memory.neighbour_bytes = memory.total_bytes - held_bytes - 128 * KIB
    stand.step()
    assert sequence.shadow is None
    stand.step()
    assert stand.store.held_bytes < held_bytes
    assert sequence.mode == "full"
    memory.neighbour_bytes = 0
    stand.run()
    (event,) = stand.of_type(Healed)
    assert _continues_as_fresh(stand, event)


def test_who_is_disturbed_again_and_again_rests_longer_each_time() -> None:
    stand = make_stand(server=_ROOMY, policy={"min_dwell_s": 4 * STEP_S})
    id_ = stand.post(prompt(150), 400)
    stand.step(2)
    stand.pin("int4")
    stand.step(2)
    stand.pin("full")
    sequence, rests = stand.sequence(id_), []
    for _ in range(4):
        num_steps = stand.num_steps
        while sequence.shadow is None:
            stand.step()
            assert stand.num_steps < 500
        rests.append(stand.num_steps - num_steps)
        sequence.drop_shadow()
    assert rests[1] < rests[2] < rests[3]


# Memory that is refused


def _heal_with(faults: Faults) -> tuple[Stand, range]:
    """The same story each time: down, back up, healed; and the calls made while it healed."""
    stand = make_stand(faults=faults, server=_ROOMY)
    for num_prompt in (90, 20):
        stand.post(prompt(num_prompt, seed=num_prompt), 25)
    calls: list[int] = []
    with faulty_attention(faults):
        stand.step(2)
        stand.pin("int8")
        stand.step(2)
        stand.pin("full")
        while stand.unfinished:
            stand.step()
            check(stand)
            assert stand.num_steps < 100
            if any(s.shadow_bytes for s in stand.scheduler.running):
                calls.append(faults.num_calls)
    return stand, range(calls[0] + 1, calls[-1] + 1)


def test_memory_that_is_refused_once_while_it_heals_costs_nobody_a_rung() -> None:
    """Slabs, workspace and every layer's attention, each in turn."""
    stand, calls = _heal_with(Faults())
    assert len(calls) > 20
    num_changes = len(stand.of_type(ModeChanged))
    num_averted = 0
    for k in calls:
        stand, _ = _heal_with(Faults(lambda n, k=k: n == k))  # type: ignore[misc]
        num_averted += len(stand.of_type(OomAverted))
        assert len(stand.of_type(ModeChanged)) == num_changes, k
        (event,) = stand.of_type(Healed)
        assert _continues_as_fresh(stand, event), k
        check_empty(stand)
    assert num_averted
