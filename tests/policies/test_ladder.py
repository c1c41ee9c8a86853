import pytest
from adaptive_kv_policies.ladder import Ladder
from hypothesis import given
from hypothesis import strategies as st
from plant import COSTS, MIB, SIZES, box, closed_loop

from adaptive_kv.policy import CacheMode, Cost, Reading
from adaptive_kv.testing import DEFAULT_LADDER, make_reading


def wanted(policy: Ladder, now: Reading) -> str | None:
    decision = policy(now)
    return None if decision is None else decision.mode


def test_with_room_to_spare_it_holds_the_top() -> None:
    assert wanted(Ladder(), box(2000)) is None


@pytest.mark.parametrize(
    ("free", "mode"),
    [(500, None), (450, "int8"), (250, "int4"), (0, "int4")],
)
def test_it_goes_straight_down_to_the_first_rung_that_frees_enough(
    free: int, mode: str | None
) -> None:
    assert wanted(Ladder(), box(free)) == mode


def test_it_passes_rungs_that_do_not_free_enough() -> None:
    costs = COSTS | {CacheMode("int8"): Cost(bytes=990 * MIB)}
    assert wanted(Ladder(), box(110, costs=costs)) == "int4"


def test_when_nothing_frees_enough_it_takes_the_smallest() -> None:
    costs = {mode: Cost(bytes=cost.bytes // 100) for mode, cost in COSTS.items()}
    assert wanted(Ladder(), box(20, costs=costs)) == "window:1024+int4"


def test_disabled_is_skipped_unless_it_is_smaller_than_what_is_above_it() -> None:
    assert wanted(Ladder(), box(20, "window:1024+int4")) is None
    costs = COSTS | {CacheMode("disabled"): Cost(bytes=10 * MIB)}
    assert wanted(Ladder(), box(20, "window:1024+int4", costs=costs)) == "disabled"


def test_at_the_bottom_there_is_nothing_to_want() -> None:
    assert wanted(Ladder(), box(0, "disabled")) is None


def test_the_floor_ahead_is_reason_enough_unless_the_trend_is_its_own_doing() -> None:
    assert wanted(Ladder(), box(2000, seconds_to_floor=2.0)) is not None
    assert wanted(Ladder(), box(2000, seconds_to_floor=4.0)) is None
    assert wanted(Ladder(), box(2000, seconds_to_floor=2.0, mode_age_s=1.0)) is None


def test_a_small_cache_on_a_box_that_others_fill_is_left_alone() -> None:
    costs = {mode: Cost(bytes=cost.bytes // 100) for mode, cost in COSTS.items()}
    now = box(200, costs=costs)
    assert now.pressure > 0.95
    assert wanted(Ladder(), now) is None


def test_up_is_one_rung_after_a_calm_hold() -> None:
    policy = Ladder(hold_s=5.0)
    answers = [wanted(policy, box(3000, "int4", time_s=float(t))) for t in range(7)]
    assert answers == [None] * 5 + ["int8"] * 2


def test_a_moment_of_pressure_starts_the_hold_anew() -> None:
    policy = Ladder(hold_s=5.0)
    free = [3000, 3000, 3000, 600, 3000, 3000, 3000, 3000, 3000, 3000]
    answers = [wanted(policy, box(f, "int4", time_s=float(t))) for t, f in enumerate(free)]
    assert answers == [None] * 9 + ["int8"]


def test_a_young_mode_is_held() -> None:
    policy = Ladder(hold_s=5.0)
    wanted(policy, box(3000, "int4", time_s=0.0))
    assert wanted(policy, box(3000, "int4", time_s=9.0, mode_age_s=4.0)) is None


def test_it_does_not_go_up_where_it_would_come_down_again() -> None:
    policy = Ladder(hold_s=0.0)
    assert wanted(policy, box(500, "int8")) is None


def test_from_a_mode_that_is_not_on_the_ladder_it_returns_to_the_highest_that_fits() -> None:
    costs = COSTS | {CacheMode("window:9"): Cost(bytes=10 * MIB)}
    assert wanted(Ladder(), box(3000, "window:9", costs=costs)) == "full"
    assert wanted(Ladder(), box(1500, "window:9", costs=costs)) == "int8"
    assert wanted(Ladder(), box(0, "window:9", costs=costs)) == "window:1024+int4"


@given(
    free=st.integers(0, 4000),
    floor=st.integers(0, 4000),
    mode=st.sampled_from(DEFAULT_LADDER),
    sizes=st.lists(st.integers(0, 5000), min_size=5, max_size=5),
    ahead=st.none() | st.floats(0, 10),
)
def test_any_reading_gets_a_rung_or_nothing(
    free: int, floor: int, mode: str, sizes: list[int], ahead: float | None
) -> None:
    costs = {CacheMode(m): Cost(bytes=n) for m, n in zip(DEFAULT_LADDER, sizes, strict=True)}
    now = make_reading(
        total_bytes=4000, free_bytes=free, floor_bytes=floor, mode=mode, costs=costs,
        seconds_to_floor=ahead,
    )  # fmt: skip
    decision = Ladder(hold_s=0.0)(now)
    assert decision is None or decision.mode in now.ladder
    assert decision is None or decision.mode != mode


@pytest.mark.parametrize(
    "options", [{"up": 0.9}, {"up": 0.0}, {"down": 0.5}, {"hold_s": -1.0}, {"down": float("nan")}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="0 < up < down"):
        Ladder(**options)


@pytest.mark.parametrize("rate", [50, 200, 1000, 20_000])
def test_a_squeeze_sends_it_down_and_its_end_brings_it_back_without_flapping(rate: float) -> None:
    plant, controller = closed_loop(Ladder())
    plant.run(controller, 10, others=500, rate=rate)
    assert plant.modes == ["full"]
    plant.run(controller, 80, others=2500, rate=rate)
    below = plant.num_below_floor
    assert plant.free >= plant.floor
    assert below <= 20
    downs = plant.modes.copy()
    plant.run(controller, 120, others=500, rate=rate)
    assert plant.mode == "full"
    assert plant.num_below_floor == below
    assert len(plant.modes) - len(downs) <= len(DEFAULT_LADDER)
    assert len(downs) <= len(DEFAULT_LADDER)


def test_a_neighbour_that_comes_and_goes_is_answered_ever_more_slowly() -> None:
    plant, controller = closed_loop(Ladder())
    for _ in range(20):
        plant.run(controller, 15, others=2500, rate=2000)
        plant.run(controller, 15, others=500, rate=2000)
    ups = sum(
        SIZES[after] > SIZES[before]
        for before, after in zip(plant.modes, plant.modes[1:], strict=False)
    )
    assert ups <= 20
    plant.run(controller, 300, others=500, rate=2000)
    assert plant.mode == "full"


def test_memory_that_trembles_around_a_threshold_does_not_shake_the_mode() -> None:
    plant, controller = closed_loop(Ladder())
    for number in range(200):
        plant.run(controller, 0.5, others=2150 + 60 * (number % 2), rate=5000)
    assert len(plant.modes) <= 4
