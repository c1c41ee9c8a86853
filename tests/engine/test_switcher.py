"""The switcher: pages follow orders, and every switch is told once, with what it took."""

import pytest
from engines import KIB, MIB, Stand, check, is_as_wanted, make_stand, slow_attention
from models import prompt

from adaptive_kv.engine.batch import OutOfMemory
from adaptive_kv.engine.speed import Speed
from adaptive_kv.events import Event, ModeChanged, OomAverted, SequenceSwitched, Switched


def _decoding(
    num: int = 3, num_prompt: int = 150, num_tokens: int = 30, few: int = 64 * MIB
) -> Stand:
    """Sequences that all decode."""
    stand = make_stand(server={"max_tokens_per_step": 512}, cache={"switch_bytes_per_step": few})
    for seed in range(num):
        stand.post(prompt(num_prompt, seed=seed), num_tokens)
    stand.step(2)
    assert len(stand.status.sequences) == num
    return stand


def _switches(stand: Stand) -> list[Switched]:
    return stand.of_type(Switched)


def _kinds(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


def test_a_switch_of_three_sequences_is_four_events_whose_bytes_add_up() -> None:
    stand = _decoding()
    used_bytes = stand.store.used_bytes
    stand.pin("int4")
    stand.step()
    *each, whole = _switches(stand)
    assert _kinds([*each, whole]) == [SequenceSwitched] * 3 + [ModeChanged]
    assert isinstance(whole, ModeChanged)
    assert whole.sequences == 3
    assert whole.freed_bytes == sum(one.freed_bytes for one in each) > used_bytes // 3
    assert {(one.from_mode, one.to_mode) for one in (*each, whole)} == {("full", "int4")}
    assert all(one.duration_s >= 0 and one.reason for one in (*each, whole))
    assert {one.sequence for one in each if isinstance(one, SequenceSwitched)} == set(
        stand.requests
    )


def test_a_large_switch_takes_several_steps_and_is_told_when_it_is_done() -> None:
    stand = _decoding(few=64 * KIB)
    stand.pin("int4")
    stand.step(2)
    assert stand.status.mode == "int4"
    assert not stand.of_type(ModeChanged)
    for _ in range(20):
        stand.step()
        check(stand)
    (whole,) = stand.of_type(ModeChanged)
    assert whole.sequences == len(stand.of_type(SequenceSwitched)) == 3
    assert whole.freed_bytes == sum(e.freed_bytes for e in stand.of_type(SequenceSwitched)) > 0


def test_a_switch_takes_no_more_of_a_step_than_its_share() -> None:
    """With hardly any, one block of pages in every step."""
    stand = make_stand(server={"max_tokens_per_step": 512}, cache={"switch_share": 1e-9})
    for seed in range(3):
        stand.post(prompt(150, seed=seed), 60)
    stand.step(2)
    stand.pin("int4")
    used_bytes = []
    while not stand.of_type(ModeChanged):
        stand.step()
        check(stand)
        used_bytes.append(stand.store.used_bytes)
    assert len(used_bytes) >= 5
    assert used_bytes[-1] < used_bytes[0]


@pytest.mark.parametrize(("now_s", "share_s"), [(80, 20), (100, 20), (105, 15), (150, 10)])
def test_its_share_makes_room_for_what_a_larger_form_takes(now_s: float, share_s: float) -> None:
    """Up to a half of it."""
    stand = make_stand(cache={"switch_share": 0.2})
    stand.post(prompt(60), 30)
    took_s = 100.0
    with slow_attention(stand.clock, lambda _: took_s):
        stand.step(5)
        took_s = now_s
        stand.step()
    assert stand.engine.worker._switch_s() == pytest.approx(share_s, abs=2)


def test_beside_a_prefill_its_share_is_of_steps_that_prefill() -> None:
    """What was prefilled is packed while others are, and not out of what decodes take later."""
    stand = make_stand(cache={"switch_share": 0.2}, server={"max_tokens_per_step": 64})
    stand.post(prompt(20), 60)
    with slow_attention(stand.clock, lambda num_tokens: 100.0 if num_tokens < 3 else 1000.0):
        stand.step(4)
        assert stand.engine.worker._switch_s() == pytest.approx(20, abs=2)
        stand.post(prompt(300), 5)
        stand.step(3)
        assert stand.engine.worker._switch_s() == pytest.approx(200, abs=2)
        stand.step(5)
        assert stand.engine.worker._switch_s() == pytest.approx(20, abs=2)


def test_where_a_device_converts_what_it_was_measured_to_do_bounds_a_step() -> None:
    """Not a clock, which has all the time in the world here: one block of pages in every step."""
    speed = Speed(
        step_s=0.01,
        row_s=0.0,
        context_token_s={"full": 0.0},
        new_token_s=0.0,
        convert_bytes_per_s=1e-9,
    )
    stand = make_stand(speed=speed, server={"max_tokens_per_step": 512})
    for seed in range(3):
        stand.post(prompt(150, seed=seed), 60)
    stand.step(2)
    stand.pin("int4")
    num_steps = 0
    while not stand.of_type(ModeChanged):
        stand.step()
        check(stand)
        num_steps += 1
    assert num_steps >= 5


def test_a_way_back_up_frees_a_negative_number_of_bytes() -> None:
    stand = _decoding()
    stand.pin("int4")
    stand.step()
    stand.pin("full")
    stand.step()
    down, up = stand.of_type(ModeChanged)
    assert (up.from_mode, up.to_mode) == ("int4", "full")
    assert down.freed_bytes > 0 > up.freed_bytes


def test_a_mode_that_changes_again_halfway_is_told_as_two_changes() -> None:
    stand = _decoding(few=32 * KIB)
    stand.pin("int4")
    stand.step()
    stand.pin("full")
    stand.step(40)
    assert [(e.from_mode, e.to_mode) for e in stand.of_type(ModeChanged)] == [
        ("full", "int4"),
        ("int4", "full"),
    ]
    for id_ in stand.requests:
        told = [e for e in stand.of_type(SequenceSwitched) if e.sequence == id_]
        assert [(e.from_mode, e.to_mode) for e in told] == [("full", "int4"), ("int4", "full")]
        assert stand.finished(id_).usage.switches == 2
    for whole in stand.of_type(ModeChanged):
        told = [e for e in stand.of_type(SequenceSwitched) if e.to_mode == whole.to_mode]
        assert whole.sequences == len(told) == 3
        assert whole.freed_bytes == sum(e.freed_bytes for e in told)


def test_who_ends_in_the_middle_of_a_switch_holds_up_nobody() -> None:
    stand = _decoding(few=32 * KIB)
    first, *others = stand.requests
    stand.pin("int4")
    stand.step()
    stand.cancel(first)
    stand.step(40)
    (whole,) = stand.of_type(ModeChanged)
    assert whole.sequences == 2
    assert {e.sequence for e in stand.of_type(SequenceSwitched)} == set(others)


def test_a_change_that_concerns_nobody_is_told_with_no_sequences() -> None:
    stand = make_stand()
    stand.pin("int8")
    stand.step()
    (whole,) = stand.of_type(ModeChanged)
    assert (whole.sequences, whole.freed_bytes) == (0, 0)


def test_who_may_not_follow_does_not_count() -> None:
    stand = _decoding()
    full = stand.post(prompt(40), 20, allow=["full"])
    stand.step(2)
    stand.pin("disabled")
    stand.step()
    (whole,) = stand.of_type(ModeChanged)
    assert whole.sequences == 3
    stand.run()
    assert is_as_wanted(stand, full)


def test_to_disabled_all_slabs_are_given_back_at_once() -> None:
    stand = _decoding()
    used_bytes = stand.store.used_bytes
    stand.pin("disabled")
    stand.step()
    (whole,) = stand.of_type(ModeChanged)
    assert whole.freed_bytes == used_bytes
    assert stand.store.held_bytes == 0


def test_slabs_are_given_back_after_a_switch() -> None:
    stand = _decoding(num=6)
    held_bytes = stand.store.held_bytes
    stand.pin("int4")
    stand.step(3)
    store = stand.store
    assert store.held_bytes < held_bytes * 0.65
    assert store.held_bytes - store.used_bytes < 4 * store.slab_bytes


def test_what_is_on_its_way_down_arrives_before_anybody_goes_lower() -> None:
    stand = make_stand(
        server={"max_tokens_per_step": 512}, cache={"switch_share": 1e-9, "slab": 4 * KIB}
    )
    for seed in range(3):
        stand.post(prompt(150, seed=seed), 60)
    stand.step(2)
    stand.pin("int8")
    stand.step()
    used_bytes = stand.store.used_bytes
    stand.engine.worker._make_room(OutOfMemory(1, is_of_pages=True))
    assert stand.store.used_bytes < used_bytes
    assert all(sequence.cache.is_settled for sequence in stand.scheduler.running)
    assert not stand.of_type(OomAverted)
    stand.step()
    assert stand.of_type(OomAverted)[-1].to_mode == "int8"
