import pytest
from adaptive_kv_policies.forecast import Forecast
from adaptive_kv_policies.ladder import Ladder
from plant import COSTS, MIB, box, closed_loop

from adaptive_kv.policy import CacheMode, Cost, Reading
from adaptive_kv.testing import DEFAULT_LADDER, make_sequence


def wanted(policy: Forecast, now: Reading) -> str | None:
    decision = policy(now)
    return decision.mode if decision else None


def test_memory_that_is_short_but_stays_is_left_in_use() -> None:
    assert wanted(Forecast(), box(110)) is None
    assert wanted(Forecast(), box(110, seconds_to_floor=60.0)) is None


@pytest.mark.parametrize(
    ("free", "ahead_s", "mode"),
    [(1000, 3.0, "window:1024+int4"), (300, 3.0, "int4"), (200, 3.0, "int8"), (2000, 3.5, None)],
)
def test_it_goes_down_as_early_as_the_switch_takes_and_as_far_as_the_trend_asks(
    free: int, ahead_s: float, mode: str | None
) -> None:
    """470 MiB are freed to int8: 1.8 s at 256 MiB/s, and 1.5 s to spare."""
    assert wanted(Forecast(), box(free, seconds_to_floor=ahead_s)) == mode


def test_under_the_floor_it_goes_down_whatever_the_trend() -> None:
    assert wanted(Forecast(), box(90)) == "int8"
    assert wanted(Forecast(), box(0, mode_age_s=0.0)) == "int8"
    assert wanted(Forecast(), box(0, "int8", mode_age_s=0.0)) == "window:1024+int4"


def test_at_the_bottom_there_is_nothing_to_want() -> None:
    assert wanted(Forecast(), box(0, "window:1024+int4")) is None


def test_shortly_after_a_change_the_trend_is_not_believed() -> None:
    assert wanted(Forecast(), box(200, seconds_to_floor=0.1, mode_age_s=1.9)) is None


def test_how_long_a_switch_takes_is_learned() -> None:
    """After a way down that freed 47 MiB/s the next one starts 3 seconds earlier."""
    policy = Forecast()

    def now(time_s: float, mode: str, cached: int, **more: object) -> Reading:
        sequence = make_sequence(mode=mode, cache_bytes=cached * MIB)
        return box(200, mode, time_s=time_s, sequences=[sequence], **more)

    assert wanted(policy, now(0, "full", 1000, seconds_to_floor=3.0)) == "int8"
    assert wanted(policy, now(5, "int8", 600)) is None
    assert wanted(policy, now(10, "int8", 530)) is None
    assert wanted(policy, now(20, "full", 1000, seconds_to_floor=4.5)) == "int8"
    assert wanted(Forecast(), now(20, "full", 1000, seconds_to_floor=4.5)) is None


def test_up_is_one_rung_after_a_hold_without_a_floor_in_sight() -> None:
    policy = Forecast(hold_s=5.0)
    ahead = [None, None, None, 8.0, None, None, None, None, None, None]
    answers = [
        wanted(policy, box(3000, "int4", time_s=float(t), mode_age_s=float(t), seconds_to_floor=s))
        for t, s in enumerate(ahead)
    ]
    assert answers == [None] * 8 + ["int8"] * 2


def test_it_goes_up_only_where_it_leaves_some_to_spare() -> None:
    assert wanted(Forecast(spare=0.1), box(100 + 250 + 380, "int4")) is None
    assert wanted(Forecast(spare=0.1), box(100 + 250 + 400, "int4")) == "int8"


def test_a_mode_that_is_not_on_the_ladder_is_left_for_the_highest_that_fits() -> None:
    costs = COSTS | {CacheMode("window:9"): Cost(bytes=10 * MIB)}
    assert wanted(Forecast(), box(3000, "window:9", costs=costs)) == "full"
    assert wanted(Forecast(), box(1100, "window:9", costs=costs)) == "int8"


@pytest.mark.parametrize("rate", [50, 200, 1000])
def test_in_a_closed_loop_the_floor_holds_and_the_cache_comes_back(rate: float) -> None:
    plant, controller = closed_loop(Forecast())
    plant.run(controller, 10, others=500, rate=rate)
    assert plant.modes == ["full"]
    plant.run(controller, 80, others=2500, rate=rate)
    assert plant.num_below_floor == 0
    assert plant.mode != "full"
    plant.run(controller, 120, others=500, rate=rate)
    assert plant.mode == "full"
    assert len(plant.modes) <= 2 * len(DEFAULT_LADDER)


def test_it_keeps_what_the_ladder_gives_up_where_memory_is_short_but_steady() -> None:
    results = {}
    for policy in (Ladder(), Forecast()):
        plant, controller = closed_loop(policy)
        plant.run(controller, 80, others=1700, rate=20)
        results[type(policy).__name__] = (plant.mode, plant.num_below_floor)
    assert results == {"Ladder": ("int8", 0), "Forecast": ("full", 0)}


@pytest.mark.parametrize(
    "options",
    [{"margin_s": -1.0}, {"look_s": 1.0}, {"hold_s": -1.0}, {"spare": 0.0}, {"spare": float("nan")},
     {"freed_bytes_per_s": 0.0}],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="margin_s"):
        Forecast(**options)
