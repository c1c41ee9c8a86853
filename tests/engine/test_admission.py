"""Who may start, and start again: enough room for long enough, and nothing twice that is shared."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from engines import (
    EXACT,
    KIB,
    LADDER,
    MIB,
    Memory,
    Stand,
    check,
    check_empty,
    is_as_wanted,
    make_stand,
    weights_bytes,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import prompt

from adaptive_kv.events import Oom, OomAverted, SequenceParked, SequenceResumed

Modes = Sequence[str] | None

_FLOOR_BYTES = 128 * KIB
_LADDERS = (LADDER, ("full", "int4"), ("full",), EXACT["ladder"])
_PREFIX = prompt(592, seed=1)
"""Nine blocks after the sinks."""


class _Course:
    """A stand on a box whose memory comes and goes."""

    def __init__(self, folder: Path, free_kib: int, *, ladder: tuple[str, ...] = LADDER) -> None:
        self.memory = Memory(folder / "memory.json", 4 * MIB)
        self.leave(free_kib * KIB, 0)
        self.stand = make_stand(
            memory={"source": f"file:{self.memory.path}", "floor": _FLOOR_BYTES},
            cache={"ladder": ladder, "switch_share": 0.1},
            policy={"name": "ladder", "options": {"hold_s": 1}},
            server={"max_tokens_per_step": 256, "max_wait_s": 1e5},
        )
        self.stand.memory = self.memory

    def leave(self, free_bytes: int, held_bytes: int) -> None:
        """A neighbour takes all but that, at most what is not ours."""
        memory = self.memory
        wanted_bytes = memory.total_bytes - free_bytes
        memory.neighbour_bytes = max(0, min(wanted_bytes, memory.total_bytes - held_bytes))

    def step(self) -> None:
        """One step; who told of a catastrophe averted has parked nobody."""
        seq = self.stand.events.last_seq
        self.stand.step()
        check(self.stand)
        types = {type(record.event) for record in self.stand.events.since(seq)[0]}
        assert not {OomAverted, SequenceParked} <= types

    def run(self, max_steps: int = 400) -> None:
        """All memory is back, and everybody ends well."""
        self.memory.neighbour_bytes = 0
        for _ in range(max_steps):
            if not self.stand.unfinished:
                break
            self.step()
        assert not self.stand.unfinished
        for id_ in self.stand.requests:
            assert is_as_wanted(self.stand, id_) or not self.stand.finished(id_).usage.exact
        check_empty(self.stand)

    @property
    def num_parkings(self) -> Counter[str]:
        """By sequence."""
        return Counter(event.sequence for event in self.stand.of_type(SequenceParked))


# Parked and resumed


@pytest.mark.parametrize("free_kib", [400, 700])
def test_memory_that_falls_during_prefill_parks_nobody_over_and_over(
    tmp_path: Path, free_kib: int
) -> None:
    course = _Course(tmp_path, free_kib)
    for n, num_tokens in enumerate((300, 150, 900, 600, 900)):
        course.stand.post(prompt(num_tokens, seed=n), 60)
    for i in range(100):
        if i < 40:
            course.memory.neighbour_bytes += 10 * KIB
            free_bytes = course.memory.free_bytes(course.stand.store.held_bytes)
            course.memory.neighbour_bytes += min(0, free_bytes)
        course.step()
    course.run()
    assert max(course.num_parkings.values()) <= 3
    assert all(event.freed_bytes > 0 for event in course.stand.of_type(OomAverted))


@pytest.mark.parametrize(("num_tokens", "num_steps"), [(60, 5), (4, 2)])
def test_a_parked_sequence_resumes_after_a_second_of_room_or_when_another_has_ended(
    num_tokens: int, num_steps: int
) -> None:
    """A step takes a quarter of a second; the second one is the first that looks for room."""
    stand = make_stand()
    stand.post(prompt(40), num_tokens)
    parked = stand.post(prompt(50), 60)
    stand.step(2)
    stand.engine.worker._rescue.park_last(0)
    stand.step(num_steps)
    assert not stand.of_type(SequenceResumed)
    stand.step()
    assert [event.sequence for event in stand.of_type(SequenceResumed)] == [parked]
    stand.run()
    assert is_as_wanted(stand, parked)


_LEVELS = st.tuples(st.integers(0, 2500), st.integers(1, 25))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ladder=st.sampled_from(_LADDERS),
    lengths=st.lists(st.sampled_from([20, 150, 300, 600, 900]), min_size=1, max_size=5),
    are_alike=st.booleans(),
    levels=st.lists(_LEVELS, min_size=1, max_size=12),
)
def test_parkings_are_as_few_as_changes_of_memory_and_all_end_when_it_is_back(
    ladder: tuple[str, ...], lengths: list[int], *, are_alike: bool, levels: list[tuple[int, int]]
) -> None:
    """Free KiB, and for how many steps. Others grow, too, and what seems to fit is tried again."""
    with tempfile.TemporaryDirectory() as folder:
        course = _Course(Path(folder), 2500, ladder=ladder)
        for n, num_tokens in enumerate(lengths):
            course.stand.post(prompt(num_tokens, seed=0 if are_alike else n), 40)
        for free_kib, num_steps in levels:
            course.leave(free_kib * KIB, course.stand.store.held_bytes)
            for _ in range(num_steps):
                course.step()
        course.run()
        assert max(course.num_parkings.values(), default=0) <= 2 * (1 + len(levels))
        assert all(event.freed_bytes > 0 for event in course.stand.of_type(OomAverted))


def test_what_fits_alone_ends_though_others_want_the_same_memory() -> None:
    stand = _budget_stand(_least_budget_bytes(200, 30), is_on=False)
    for seed in range(5):
        stand.post(prompt(200, seed=seed), 30)
    stand.run()
    assert all(is_as_wanted(stand, id_) and stand.finished(id_) for id_ in stand.requests)
    check_empty(stand)


def _budget_stand(budget_bytes: int, *, is_on: bool = True) -> Stand:
    """Nothing but full, so that nobody goes down instead; prefixes are shared or not."""
    return make_stand(
        memory={"budget": weights_bytes() + budget_bytes, "floor": 0},
        cache={"ladder": ("full",), "slab": 16 * KIB, "prefix": is_on},
        server={"max_wait_s": 1e5},
    )


def _least_budget_bytes(num_prompt: int, num_tokens: int) -> int:
    """With which a sequence ends that is alone."""
    for kib in range(400, 8000, 20):
        stand = _budget_stand(kib * KIB, is_on=False)
        stand.post(prompt(num_prompt, seed=1), num_tokens)
        stand.step(num_tokens + num_prompt // 32 + 5)
        if not (stand.unfinished or stand.of_type(SequenceParked)):
            return kib * KIB
    raise AssertionError("no budget is enough")


# Shared


def _start_many(stand: Stand, num_tokens: int, first: Modes = None, others: Modes = None) -> None:
    """One with a long prompt is there before four come who begin like it."""
    id_ = stand.post(_PREFIX, num_tokens, allow=first)
    while not stand.output(id_):
        stand.step()
        assert stand.num_steps < 60
    for seed in range(4):
        stand.post([*_PREFIX, *prompt(20, seed=seed)], 20, allow=others)


def _finish(stand: Stand) -> int:
    """Until everybody has ended; how many ran at once, and nothing ran out of memory."""
    most = 0
    while stand.unfinished:
        stand.step()
        check(stand)
        most = max(most, len(stand.scheduler.running))
        assert stand.num_steps < 600
    assert not any(stand.of_type(kind) for kind in (Oom, OomAverted, SequenceParked))
    check_empty(stand)
    return most


def test_many_who_begin_alike_run_at_once_where_only_one_whole_prompt_fits() -> None:
    """Each of the others adds only its tail, and nothing runs out of memory."""
    tail_bytes = 128 * KIB  # pages of 40 tokens, and the workspace of a longer context
    budget_bytes = _least_budget_bytes(len(_PREFIX), 90) + 4 * tail_bytes
    for is_on, most in ((True, 5), (False, 1)):
        stand = _budget_stand(budget_bytes, is_on=is_on)
        _start_many(stand, 90)
        assert _finish(stand) == most
        assert all(is_as_wanted(stand, id_) for id_ in stand.requests)


@pytest.mark.parametrize("budget_kib", [4100, 4300])
@pytest.mark.parametrize("modes", [("full", "int4"), ("int4", "full"), ("int8", "int8")])
def test_what_others_keep_in_another_format_is_not_counted_on(
    modes: tuple[str, str], budget_kib: int
) -> None:
    """Who comes later wants it smaller, larger or the same: nothing runs out of memory."""
    stand = make_stand(
        memory={"budget": weights_bytes() + budget_kib * KIB, "floor": 0},
        cache={"slab": 16 * KIB, "heal": False},
        server={"max_wait_s": 1e5},
    )
    _start_many(stand, 30, modes[:1], modes[1:])
    _finish(stand)
