"""The loop is closed: what a policy decides is what it gets, and figures say what came of it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import LADDER, MIB, full_bytes, make_curve, make_header, make_moment, make_trace, seen

from adaptive_kv import Decision, Reading
from adaptive_kv.errors import TraceError
from adaptive_kv.loader import load_policy
from adaptive_kv.policy import CacheMode, Policy
from adaptive_kv.replay import Figures, replay
from adaptive_kv.replay.course import Course
from adaptive_kv.replay.simulation import Simulation
from adaptive_kv.trace import Moment, read_trace
from adaptive_kv.trace.curve import measure

ROOM = 16 * MIB
"""The floor of a made-up moment."""


def policy(name: str, **options: object) -> Policy:
    return load_policy(name, options)[0]


def simulate(moments: list[Moment], decide: Policy, **header: object) -> tuple[Figures, Course]:
    course = Course()
    simulation = Simulation(
        make_header(**header), decide, "it", fallback=policy("ladder"), course=course
    )
    for moment in moments:
        simulation.step(moment)
    return simulation.figures(), course


class Watching:
    """Holds one mode and keeps what it was shown."""

    def __init__(self, mode: str = "full") -> None:
        self.decision = Decision(mode)
        self.shown: list[Reading] = []

    def __call__(self, now: Reading) -> Decision:
        self.shown.append(now)
        return self.decision


def growing(num: int, *, left_bytes: int = 512 * MIB, **changes: object) -> list[Moment]:
    """Two sequences that grow by a token each tenth of a second."""
    return [
        make_moment(0.1 * i, left_bytes, [seen(0, 100 + i), seen(1, 300 + i)], **changes)
        for i in range(num)
    ]


def test_free_memory_is_what_others_left_less_what_the_policys_cache_weighs() -> None:
    watching = Watching("int8")
    simulate(growing(40), watching)
    last = watching.shown[-1]
    used_bytes = (full_bytes(139) + full_bytes(339)) // 2
    wanted_bytes = -(-used_bytes // MIB) * MIB  # whole slabs
    assert last.memory.cache_bytes == wanted_bytes
    assert last.memory.free_bytes == 512 * MIB - wanted_bytes
    assert {s.mode for s in last.sequences} == {"int8"}
    assert last.mode == "int8"
    assert last.costs["int4"].bytes == used_bytes // 2 + 1000  # type: ignore[index]


def test_under_the_policy_that_recorded_it_the_record_repeats_itself() -> None:
    watching = Watching("full")
    moments = growing(40)
    simulate(moments, watching)
    for moment, reading in list(zip(moments, watching.shown, strict=True))[1:]:
        assert reading.memory.free_bytes == moment.free_bytes
        assert reading.memory.cache_bytes == moment.cache_bytes
        told = [(s.num_tokens, s.cache_bytes, s.mode) for s in reading.sequences]
        assert told == [(s.num_tokens, s.cache_bytes, s.mode) for s in moment.sequences]


def test_the_policy_sees_where_its_own_memory_is_heading() -> None:
    falling = [make_moment(0.1 * i, (500 - i) * MIB) for i in range(40)]
    watching = Watching()
    simulate(falling, watching)
    free_bytes = falling[-1].free_bytes - ROOM
    assert watching.shown[-1].seconds_to_floor == pytest.approx(free_bytes / (10 * MIB))


def test_tokens_count_for_the_mode_they_were_generated_in() -> None:
    class Halfway:
        def __call__(self, now: Reading) -> Decision:
            return Decision("int8" if now.time_s >= 2.0 else "full")

    figures, _ = simulate(growing(41), Halfway())
    assert figures.tokens == 2 * 40
    assert figures.share_by_mode == {"full": 0.5, "int8": 0.5, "int4": 0.0}
    assert figures.exact_share == figures.lossy_share == 0.5
    assert (figures.switches_down, figures.switches_up, figures.mode_changes) == (2, 0, 1)


def test_what_is_lost_stays_lost_on_the_way_back() -> None:
    class ThereAndBack:
        def __call__(self, now: Reading) -> Decision:
            return Decision("int8" if now.time_s < 1.0 else "full")

    figures, _ = simulate(growing(41), ThereAndBack())
    assert figures.share_by_mode["full"] > 0.7
    assert figures.exact_share == 0


def test_seconds_under_the_floor_are_interpolated() -> None:
    """From 10 MiB above the floor to 10 below within a second, where it stays for another."""
    lefts = (ROOM + 10 * MIB, ROOM - 10 * MIB, ROOM - 10 * MIB)
    moments = [make_moment(time_s, left) for time_s, left in enumerate(lefts)]
    figures, _ = simulate(moments, policy("fixed"))
    assert figures.under_floor_s == pytest.approx(1.5)
    assert figures.worst_depth_bytes == 10 * MIB


def test_time_in_which_nothing_was_recorded_is_not_counted() -> None:
    figures, _ = simulate([make_moment(t, ROOM) for t in (0, 1, 1000, 1001)], policy("fixed"))
    assert figures.seconds == 2


def squeezed(room_bytes: int, *, priorities: tuple[int, int] = (0, 0)) -> list[Moment]:
    """Two that have room, then so much for both together while they grow, then room again."""
    lows = [seen(number, 160, priority=own) for number, own in enumerate(priorities)]
    highs = [each._replace(num_tokens=320, cache_bytes=full_bytes(320)) for each in lows]
    stages = ((512 * MIB, lows), (ROOM + room_bytes, highs), (512 * MIB, highs))
    return [
        make_moment(stage + 0.1 * i, left_bytes, present)
        for stage, (left_bytes, present) in enumerate(stages)
        for i in range(10)
    ]


def test_pages_that_would_not_fit_send_the_service_down_whatever_the_policy_says() -> None:
    figures, course = simulate(squeezed(30 * MIB), Watching("full"))
    assert (figures.rescues, figures.parked, figures.rejected) == (1, 0, 0)
    assert course.modes[15] == {"int8": 2}
    assert course.cache_bytes[15] == 20 * MIB
    assert figures.under_floor_s == 0


def test_who_does_not_fit_even_so_is_parked_newest_first_and_resumes() -> None:
    watching = Watching("full")
    figures, _ = simulate(squeezed(30 * MIB), watching, ladder=LADDER[:1])
    assert [s.id for s in watching.shown[15].sequences] == ["seq-0"]
    assert (figures.rescues, figures.parked, figures.rejected) == (1, 1, 0)
    assert [s.id for s in watching.shown[-1].sequences] == ["seq-0", "seq-1"]


def test_low_priority_is_parked_before_high() -> None:
    watching = Watching("full")
    simulate(squeezed(30 * MIB, priorities=(-1, 1)), watching, ladder=LADDER[:1])
    assert [s.id for s in watching.shown[15].sequences] == ["seq-1"]


def test_memory_that_the_neighbour_took_back_is_not_for_growing() -> None:
    """What is held may be kept though the floor is broken; nothing is added to it."""
    figures, course = simulate(squeezed(10 * MIB), Watching("full"), ladder=LADDER[:1])
    assert figures.parked == 1
    assert max(course.cache_bytes[10:20]) <= 20 * MIB


def test_who_waits_longer_than_the_service_permits_is_rejected_once() -> None:
    moments = [make_moment(t, ROOM, [seen(0, 1600)]) for t in range(20)]
    figures, _ = simulate([*moments, make_moment(20, 512 * MIB)], policy("fixed"), max_wait_s=5.0)
    assert figures.rejected == 1


def test_who_waits_until_its_record_ends_is_rejected_and_its_tokens_are_late() -> None:
    moments = [make_moment(0.1 * i, ROOM, [seen(0, 1600 + i)]) for i in range(20)]
    figures, _ = simulate([*moments, make_moment(2, 512 * MIB)], policy("fixed"))
    assert figures.rejected == 1
    assert figures.late_share == 1


def test_a_policy_that_admits_nobody_keeps_everyone_waiting() -> None:
    class Closed:
        def __call__(self, _: Reading) -> Decision:
            return Decision("full", admit=False)

    figures, course = simulate(growing(10), Closed())
    assert figures.late_share == 1
    assert max(course.cache_bytes) == 0


def test_no_sequence_gets_a_mode_that_its_request_forbids() -> None:
    allow = frozenset({CacheMode("full"), CacheMode("int4")})
    moments = [make_moment(0.1 * i, 512 * MIB, [seen(0, 400, allow=allow)]) for i in range(20)]
    watching = Watching("int8")
    simulate(moments, watching)
    assert watching.shown[-1].sequences[0].mode == "int4"


def test_the_guard_rules_a_replay_as_it_rules_the_service() -> None:
    """Up waits for the dwell, whatever the policy wants."""

    class Restless:
        def __call__(self, now: Reading) -> Decision:
            return Decision("int4" if now.time_s < 1 else "full")

    watched, course = simulate(growing(100), Restless(), min_dwell_s=5.0)
    full = CacheMode("full")
    first_up_s = next(
        t for t, modes in zip(course.time_s, course.modes, strict=True) if t > 1 and modes[full]
    )
    assert 5.0 <= first_up_s <= 5.2
    assert watched.mode_changes == 2


def test_a_prefill_grows_as_it_was_recorded() -> None:
    shares = (0.0, 0.25, 0.5, 1.0)
    moments = [
        make_moment(0.1 * i, 512 * MIB, [seen(0, 1600, cache_bytes=int(full_bytes(1600) * s))])
        for i, s in enumerate(shares)
    ]
    _, course = simulate(moments, Watching("int8"))
    wanted = [full_bytes(1600) * s / 2 for s in shares]
    assert course.cache_bytes == pytest.approx(wanted, abs=MIB)


def test_what_a_window_dropped_costs_nothing_on_the_way_back() -> None:
    window = measure(lambda n: min(n, 160) // 16 * MIB, regular_from=160, period_tokens=16)
    ladder = (CacheMode("full"), CacheMode("window:160"))
    curves = {ladder[0]: make_curve(4), ladder[1]: window}

    class ThereAndBack:
        def __call__(self, now: Reading) -> Decision:
            return Decision(ladder[1] if now.time_s < 1 else ladder[0])

    moments = [make_moment(0.1 * i, 512 * MIB, [seen(0, 1600)]) for i in range(30)]
    _, course = simulate(moments, ThereAndBack(), ladder=ladder, curves=curves, min_dwell_s=0)
    assert course.modes[-1] == {"full": 1}
    assert course.cache_bytes[-1] == 10 * MIB


def test_a_policy_that_is_at_fault_is_replaced_and_its_faults_are_told() -> None:
    def broken(_: Reading) -> Decision:
        raise RuntimeError

    figures, _ = simulate(growing(20), broken)
    assert figures.policy_faults == 5


def test_several_policies_stand_beside_the_record(tmp_path: Path) -> None:
    file = make_trace(tmp_path / "trace", growing(30))
    policies = [(name, policy(name)) for name in ("ladder", "fair")]
    recorded, *others = replay(read_trace(file), policies)
    assert [each.figures.policy for each in (recorded, *others)] == ["recorded", "ladder", "fair"]
    assert recorded.figures.share_by_mode["full"] == 1
    assert recorded.figures.tokens == others[0].figures.tokens == 58
    assert recorded.figures.parked is None
    assert recorded.course is None


def test_a_trace_of_one_moment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="less than two moments"):
        replay(read_trace(make_trace(tmp_path / "trace", growing(1))), [])


@given(
    st.lists(
        st.tuples(
            st.integers(0, 80),
            st.dictionaries(st.integers(0, 4), st.integers(1, 900), max_size=5),
        ),
        min_size=2,
        max_size=25,
    ),
    st.sampled_from(["ladder", "fair", "forecast", "fixed"]),
)
@settings(max_examples=60, deadline=None)
def test_whatever_happened_the_guard_takes_nothing_that_breaks_the_floor(
    story: list[tuple[int, dict[int, int]]], name: str
) -> None:
    moments = [
        make_moment(0.3 * i, ROOM + left * MIB, [seen(n, length) for n, length in present.items()])
        for i, (left, present) in enumerate(story)
    ]
    figures, course = simulate(moments, policy(name))
    before = 0
    for moment, cache_bytes in zip(moments, course.cache_bytes, strict=True):
        room_bytes = moment.free_bytes + moment.cache_bytes - moment.floor_bytes
        assert cache_bytes <= max(before, room_bytes)
        before = cache_bytes
    shares = sum(figures.share_by_mode.values()) + figures.late_share
    assert figures.tokens == 0 or shares == pytest.approx(1, abs=0.001)
    assert sum(figures.share_by_mode.get(mode, 0) for mode in LADDER) == pytest.approx(
        sum(figures.share_by_mode.values())
    )


def test_a_policy_finds_the_cost_of_every_mode_that_it_may_want() -> None:
    watching = Watching()
    simulate(growing(10), watching)
    assert all({now.mode, *now.ladder} <= now.costs.keys() for now in watching.shown)
