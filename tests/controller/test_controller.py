from collections.abc import Collection, Sequence

import pytest

from adaptive_kv.controller import Controller
from adaptive_kv.controller.asking import MAX_FAULTS, AnyPolicy, Fault
from adaptive_kv.controller.dwell import MAX_FACTOR
from adaptive_kv.controller.flaps import MAX_RETURNS, NUM_ANSWERS
from adaptive_kv.errors import ConfigError
from adaptive_kv.events import Event, PolicyFault
from adaptive_kv.policy import CacheMode, Cost, Decision, Policy, Reading, SequenceInfo
from adaptive_kv.testing import make_reading, make_sequence

LADDER = tuple(CacheMode(m) for m in ("full", "int8", "int4", "window:64+int4", "disabled"))
COSTS = {
    CacheMode(mode): Cost(bytes=num_bytes)
    for mode, num_bytes in zip(LADDER, (1000, 500, 250, 100, 300), strict=True)
}


class Scripted:
    """Wants what it was last told."""

    def __init__(self, mode: str | None = None) -> None:
        self.decision = None if mode is None else Decision(mode, "told so")
        self.error: Exception | None = None

    def __call__(self, _now: Reading) -> Decision | None:
        if self.error is not None:
            raise self.error
        return self.decision

    def want(self, mode: str | None, **sequences: str) -> None:
        self.decision = None if mode is None else Decision(mode, "told so", sequences)


class Late:
    """Answers when the test says so."""

    def __init__(self, *news: object) -> None:
        self.news: list[object] = list(news)
        self.is_closed = False

    def exchange(self, _reading: Reading) -> Sequence[object]:
        news, self.news = self.news, []
        return news

    def close(self) -> None:
        self.is_closed = True


def make(
    policy: AnyPolicy,
    fallback: Policy = lambda _: None,
    events: list[Event] | None = None,
    only: set[str] | None = None,
    ladder: tuple[CacheMode, ...] = LADDER,
    struck: Collection[str] = (),
) -> Controller:
    return Controller(
        policy,
        name="scripted",
        fallback=fallback,
        ladder=ladder,
        min_dwell_s=5.0,
        max_age_s=2.0,
        deadline_s=60.0,
        emit=(events if events is not None else []).append,
        is_supported=lambda mode: only is None or mode in only,
        is_struck=lambda mode: mode in struck,
    )


def at(
    time_s: float,
    *sequences: SequenceInfo,
    free_bytes: int = 9000,
    sample_age_s: float = 0.0,
    costs: dict[CacheMode, Cost] | None = None,
) -> Reading:
    return make_reading(
        time_s=time_s,
        total_bytes=10_000,
        free_bytes=free_bytes,
        floor_bytes=1000,
        sample_age_s=sample_age_s,
        ladder=LADDER,
        costs=COSTS if costs is None else costs,
        sequences=sequences,
    )


def test_it_starts_at_the_top_of_what_the_model_supports() -> None:
    assert make(Scripted()).mode == "full"
    assert make(Scripted(), only={"int4", "disabled"}).ladder == ("int4", "disabled")
    with pytest.raises(ConfigError, match=r"cache\.ladder"):
        make(Scripted(), only={"window:7"})


def test_down_is_at_once_and_up_waits_for_the_dwell() -> None:
    policy = Scripted("int4")
    controller = make(policy)
    assert controller.decide(at(0)).mode == "int4"
    policy.want("full")
    held = controller.decide(at(4.9))
    assert (held.mode, held.reason_code) == ("int4", "guard_dwell")
    assert "told so" in held.reason_text
    policy.want("disabled")
    assert controller.decide(at(5)).mode == "disabled"
    policy.want("full")
    assert controller.decide(at(9.9)).mode == "disabled"
    risen = controller.decide(at(10))
    assert (risen.mode, risen.reason_code, risen.reason_text) == ("full", "policy", "told so")
    assert controller.mode_since_s == 10


def test_going_down_soon_after_going_up_doubles_the_wait_up_to_a_bound() -> None:
    policy = Scripted()
    controller = make(policy)
    time_s, waits = 0.0, []
    for _ in range(7):
        policy.want("int8")
        controller.decide(at(time_s))
        policy.want("full")
        start_s = time_s
        while controller.decide(at(time_s)).mode != "full":
            time_s += 1
        waits.append(time_s - start_s)
    assert waits == [5, 10, 20, 40, 80, 5 * MAX_FACTOR, 5 * MAX_FACTOR]


def test_a_way_up_that_lasted_brings_the_wait_back() -> None:
    policy = Scripted("int8")
    controller = make(policy)
    for time_s, mode in ((0, "int8"), (5, "full"), (6, "int8"), (16, "full"), (100, "int8")):
        policy.want(mode)
        assert controller.decide(at(time_s)).mode == mode
    policy.want("full")
    assert controller.decide(at(105)).mode == "full"


@pytest.mark.parametrize(
    ("free_bytes", "sample_age_s", "code"),
    [(900, 0.0, "guard_floor"), (9000, 2.1, "guard_stale"), (9000, float("nan"), "guard_stale")],
)
def test_no_way_up_under_the_floor_or_on_an_old_sample_even_if_it_shrinks(
    free_bytes: int, sample_age_s: float, code: str
) -> None:
    policy = Scripted("disabled")
    controller = make(policy)
    controller.decide(at(0))
    policy.want("window:64+int4")
    orders = controller.decide(at(100, free_bytes=free_bytes, sample_age_s=sample_age_s))
    assert (orders.mode, orders.reason_code) == ("disabled", code)
    assert orders.allowance_bytes == 0


def test_what_does_not_fit_is_approached_as_far_as_it_does() -> None:
    policy = Scripted("window:64+int4")
    controller = make(policy)
    controller.decide(at(0))
    policy.want("full")
    orders = controller.decide(at(10, free_bytes=1000 + 450))
    assert (orders.mode, orders.reason_code) == ("int8", "guard_fit")
    assert controller.decide(at(20, free_bytes=1000 + 450)).mode == "int8"


def test_a_lower_rung_that_needs_more_must_fit_too() -> None:
    policy = Scripted("int4")
    controller = make(policy)
    controller.decide(at(0))
    policy.want("disabled")
    assert controller.decide(at(1, free_bytes=1049)).mode == "window:64+int4"
    assert controller.decide(at(2, free_bytes=1200)).mode == "disabled"


def test_to_hold_gives_up_what_the_guard_has_held_back() -> None:
    policy = Scripted("int4")
    controller = make(policy)
    controller.decide(at(0))
    policy.want("full")
    controller.decide(at(1))
    policy.want(None)
    orders = controller.decide(at(100))
    assert (orders.mode, orders.reason_code, orders.reason_text) == ("int4", "policy", "told so")


def test_a_mode_that_is_not_on_the_ladder_is_placed_by_its_cost() -> None:
    policy = Scripted("int8")
    controller = make(policy)
    controller.decide(at(0))
    costs = {**COSTS, CacheMode("window:512"): Cost(bytes=600)}
    policy.want("window:512")
    assert controller.decide(at(1, costs=costs)).mode == "int8"
    assert controller.decide(at(6, costs=costs)).mode == "window:512"
    costs = {**costs, CacheMode("window:16"): Cost(bytes=50)}
    policy.want("window:16")
    assert controller.decide(at(7, costs=costs)).mode == "window:16"


def test_sequences_follow_as_far_as_their_requests_permit() -> None:
    policy = Scripted("int8")
    orders = make(policy).decide(
        at(
            0,
            make_sequence("any"),
            make_sequence("full", allow=["full"]),
            make_sequence("low", allow=["full", "int4"]),
            make_sequence("high", mode="full", allow=["full", "window:9"]),
            make_sequence("odd", mode="window:9", allow=["window:9"]),
        )
    )
    assert orders.modes == {
        "any": "int8", "full": "full", "low": "int4", "high": "full", "odd": "window:9",
    }  # fmt: skip


def test_a_request_that_permits_nothing_the_model_supports_gets_no_mode() -> None:
    controller = make(Scripted(), only={"full", "disabled"})
    assert controller.mode_for({CacheMode("int4")}, CacheMode("full")) is None
    assert controller.mode_for({CacheMode("int4"), CacheMode("disabled")}) == "disabled"
    bound = make_sequence("a", mode="int4", allow=["int4"])
    assert controller.decide(at(0, bound)).modes == {}


def test_a_sequence_of_its_own_goes_down_at_once_and_up_after_the_dwell() -> None:
    policy = Scripted("full")
    controller = make(policy)
    a, b = make_sequence("a"), make_sequence("b")
    controller.decide(at(0, a, b))
    policy.want("full", a="int4", gone="int4")
    assert controller.decide(at(10, a, b)).modes == {"a": "int4", "b": "full"}
    policy.want("full")
    assert controller.decide(at(14, a, b)).modes == {"a": "int4", "b": "full"}
    assert controller.decide(at(15, a, b)).modes == {"a": "full", "b": "full"}


def test_sequences_go_up_only_as_far_as_there_is_room_for_all_of_them() -> None:
    policy = Scripted("full")
    controller = make(policy)
    both = [make_sequence(id_, mode="window:64+int4", num_tokens=100) for id_ in "ab"]
    orders = controller.decide(at(0, *both, free_bytes=1000 + 500))
    assert sorted(orders.modes.values()) == ["full", "window:64+int4"]
    assert controller.decide(at(0, *both, free_bytes=1000 + 500)).mode == "full"


def test_a_pin_moves_at_once_both_ways_and_ends_where_it_is() -> None:
    policy = Scripted("full")
    controller = make(policy)
    a = make_sequence("a")
    controller.decide(at(0, a))
    controller.pin(CacheMode("int4"))
    orders = controller.decide(at(1, a))
    assert (orders.mode, orders.modes["a"], orders.reason_code) == ("int4", "int4", "pinned")
    controller.pin(CacheMode("int8"))
    assert controller.decide(at(1.5, a)).mode == "int8"
    policy.want(None)
    controller.unpin()
    orders = controller.decide(at(2, a))
    assert (orders.mode, orders.reason_code) == ("int8", "policy")


def test_a_pin_waits_until_it_fits() -> None:
    controller = make(Scripted("window:64+int4"))
    controller.decide(at(0))
    controller.pin(CacheMode("full"))
    assert controller.decide(at(1, free_bytes=1100)).mode == "window:64+int4"
    assert controller.decide(at(2)).mode == "full"


def test_a_pin_that_the_model_cannot_have_is_refused() -> None:
    controller = make(Scripted("full"), only={"full"})
    assert not controller.pin(CacheMode("int4"))
    assert not controller.is_pinned


STRUCK = {"int4", "window:64+int4"}


def test_what_is_struck_is_no_rung_and_no_policy_may_choose_it() -> None:
    policy, events = Scripted("int4"), list[Event]()
    controller = make(policy, events=events, struck=STRUCK)
    assert controller.ladder == ("full", "int8", "disabled")
    assert controller.decide(at(0)).mode == "full"
    (fault,) = events
    assert isinstance(fault, PolicyFault)
    assert "does not support" in fault.error
    policy.want("int8", a="window:64+int4")
    assert controller.decide(at(0)).mode == "full"


def test_running_out_goes_past_what_is_struck() -> None:
    controller = make(Scripted("full"), struck=STRUCK)
    sequence = make_sequence("a", mode="int8", num_tokens=9)
    controller.decide(at(0))
    orders = controller.step_down(at(0, sequence))
    assert orders is not None
    assert orders.modes["a"] == "disabled"


def test_whoever_names_what_is_struck_has_it() -> None:
    controller = make(Scripted("full"), struck=STRUCK)
    assert controller.mode_for({CacheMode("int4")}) == "int4"
    assert controller.mode_for({CacheMode("int4"), CacheMode("int8")}) == "int8"
    assert controller.pin(CacheMode("int4"))
    assert controller.decide(at(0)).mode == "int4"
    controller.unpin()
    assert controller.decide(at(100)).mode == "full"


def test_a_ladder_of_which_everything_is_struck_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"int4 lose more than cache\.max_kl"):
        make(Scripted(), ladder=(CacheMode("int4"),), struck=STRUCK)


def test_running_out_steps_everything_down_and_keeps_it_there_for_a_while() -> None:
    policy = Scripted("full")
    controller = make(policy)
    a, b = make_sequence("a"), make_sequence("b", allow=["full", "int4"])
    controller.decide(at(0, a, b))
    orders = controller.step_down(at(1, a, b))
    assert orders is not None
    assert (orders.mode, orders.reason_code) == ("int8", "oom")
    assert orders.modes == {"a": "int8", "b": "int4"}
    assert controller.decide(at(2, a, b)).modes == {"a": "int8", "b": "int4"}
    policy.want(None)
    assert controller.decide(at(100, a, b)).mode == "int8"


def test_running_out_overrules_a_pin_without_ending_it() -> None:
    controller = make(Scripted())
    controller.pin(CacheMode("full"))
    controller.decide(at(0, make_sequence("a")))
    orders = controller.step_down(at(1, make_sequence("a")))
    assert orders is not None
    assert (orders.mode, controller.pinned) == ("int8", "full")
    assert controller.decide(at(2, make_sequence("a"))).mode == "int8"


def test_it_skips_rungs_that_are_no_smaller_and_ends_at_the_smallest() -> None:
    controller = make(Scripted())
    a, modes = make_sequence("a"), []
    while (orders := controller.step_down(at(1, a))) is not None:
        modes.append(orders.modes["a"])
    assert modes == ["int8", "int4", "window:64+int4"]
    assert controller.mode == "window:64+int4"


def test_nothing_changes_when_no_sequence_could_become_smaller() -> None:
    controller = make(Scripted("full"))
    bound = make_sequence("a", allow=["full"])
    controller.decide(at(0, bound))
    assert controller.step_down(at(1, bound)) is None
    assert controller.mode == "full"


def test_without_sequences_the_service_itself_steps_down() -> None:
    controller = make(Scripted("full"))
    orders = controller.step_down(at(0))
    assert orders is not None
    assert orders.mode == "int8"


def test_a_faulty_policy_is_held_to_its_last_good_decision_then_replaced() -> None:
    policy, events = Scripted("int8"), list[Event]()
    controller = make(policy, Scripted("int4"), events)
    controller.decide(at(0))
    policy.error = ZeroDivisionError("oops")
    for number in range(MAX_FAULTS):
        assert controller.decide(at(1)).mode == "int8"
        assert controller.policy_status == ("faulty" if number < MAX_FAULTS - 1 else "fallback")
    assert controller.decide(at(2)).mode == "int4"
    assert (controller.name, controller.num_faults) == ("ladder", MAX_FAULTS)
    faults = [event for event in events if isinstance(event, PolicyFault)]
    assert [fault.faults for fault in faults] == [1, 2, 3, 4, 5]
    assert faults[0].error == "ZeroDivisionError: oops"
    assert faults[-1].error.endswith("the fallback policy takes over")


def test_one_good_answer_ends_a_row_of_faults() -> None:
    policy = Scripted("int8")
    controller = make(policy)
    for _ in range(3 * MAX_FAULTS):
        policy.error = None if controller.num_faults % 2 else ValueError("odd")
        controller.decide(at(0))
        policy.error = None
        controller.decide(at(0))
    assert controller.policy_status == "ok"
    assert controller.name == "scripted"


def test_a_fallback_that_fails_for_ever_floods_nobody() -> None:
    policy, events = Scripted(), list[Event]()
    policy.error = ValueError("x" * 10_000)
    controller = make(policy, policy, events)
    for _ in range(100):
        controller.decide(at(0))
    assert controller.num_faults == 100
    assert len(events) == 2 * MAX_FAULTS
    assert all(isinstance(e, PolicyFault) and len(e.error) < 400 for e in events)


class Unprintable(Exception):  # noqa: N818 - its point is its text
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("full", "answered a str"),
        (float("nan"), "answered a float"),
        (Decision("full", admit=float("nan")), "admit"),  # type: ignore[arg-type]
        (Decision("full", reason=None), "reason"),  # type: ignore[arg-type]
        (Decision("window:9"), "does not support"),
        (Decision("full", sequences={"a": "window:9"}), "does not support"),
        (Unprintable(), "Unprintable"),
        (StopIteration(), "StopIteration"),
        (RecursionError("deep"), "deep"),
    ],
)
def test_every_kind_of_nonsense_is_a_fault(answer: object, error: str) -> None:
    def policy(_now: Reading) -> Decision | None:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    events: list[Event] = []
    controller = make(policy, events=events, only=set(LADDER))
    controller.decide(at(0))
    assert controller.policy_status == "faulty"
    assert isinstance(events[0], PolicyFault)
    assert error in events[0].error


def test_an_answer_whose_insides_were_changed_is_checked_anew() -> None:
    decision = Decision("full")
    object.__setattr__(decision, "mode", "int5")
    controller = make(lambda _: decision)
    assert controller.decide(at(0)).mode == "full"
    assert controller.num_faults == 1


def test_an_answer_past_the_deadline_is_a_fault_and_not_used() -> None:
    ticks = iter([0.0, 0.1, 1.0, 1.2])
    controller = Controller(
        lambda _: Decision("int4"),
        name="slow",
        fallback=lambda _: None,
        ladder=LADDER,
        min_dwell_s=5.0,
        max_age_s=2.0,
        deadline_s=0.1,
        emit=lambda _: None,
        timer=lambda: next(ticks),
    )
    assert controller.decide(at(0)).mode == "int4"
    assert controller.num_faults == 0
    controller.decide(at(0))
    assert (controller.num_faults, controller.policy_status) == (1, "faulty")


def test_a_policy_may_close_admission() -> None:
    controller = make(lambda _: Decision("full", admit=False))
    assert not controller.decide(at(0)).admit


def test_an_interrupt_is_no_fault_of_the_policy() -> None:
    def policy(_now: Reading) -> Decision | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(policy).decide(at(0))


def test_a_policy_that_answers_late_is_held_to_its_last_answer_until_the_next() -> None:
    policy = Late()
    controller = make(policy)
    assert controller.decide(at(0)).reason_code == "start"
    policy.news = [Decision("int4"), Decision("int8")]
    assert controller.decide(at(1)).mode == "int8"
    policy.news = [Decision("full")]
    assert controller.decide(at(2)).reason_code == "guard_dwell"
    assert controller.decide(at(6)).mode == "full"
    policy.news = [None]
    assert controller.decide(at(7)).mode == "full"
    assert controller.num_faults == 0


def test_no_news_neither_ends_a_row_of_faults_nor_lengthens_it() -> None:
    policy = Late(Decision("int8"))
    controller = make(policy, Scripted("int4"))
    controller.decide(at(0))
    for number in range(1, MAX_FAULTS + 1):
        assert controller.decide(at(0)).mode == "int8"
        policy.news = [Fault("silent")]
        controller.decide(at(0))
        assert controller.num_faults == number
    assert policy.is_closed
    assert controller.policy_status == "fallback"
    assert controller.decide(at(1)).mode == "int4"


def test_what_comes_after_the_takeover_is_not_heard() -> None:
    policy = Late(*[Fault("silent")] * MAX_FAULTS, Decision("int4"))
    controller = make(policy)
    assert controller.decide(at(0)).mode == "full"
    assert controller.num_faults == MAX_FAULTS
    assert controller.policy_status == "fallback"


@pytest.mark.parametrize("answer", ["full", float("nan"), Decision("window:9")])
def test_late_nonsense_is_a_fault_like_any(answer: object) -> None:
    controller = make(Late(answer), only=set(LADDER))
    controller.decide(at(0))
    assert (controller.num_faults, controller.policy_status) == (1, "faulty")


@pytest.mark.parametrize("is_late", [False, True])
def test_wanting_two_things_in_turns_ends_in_the_fallback(is_late: bool) -> None:
    events: list[Event] = []
    late, scripted = Late(), Scripted()
    controller = make(late if is_late else scripted, events=events)
    modes = ["int8", "int4"] * (NUM_ANSWERS + MAX_FAULTS)
    for mode in modes[: MAX_RETURNS + 2]:
        scripted.want(mode)
        late.news = [scripted.decision]
        controller.decide(at(0))
    assert controller.policy_status == "ok"
    for mode in modes[:MAX_FAULTS]:
        scripted.want(mode)
        late.news = [scripted.decision]
        controller.decide(at(0))
    assert controller.policy_status == "fallback"
    assert isinstance(events[0], PolicyFault)
    assert "in turns" in events[0].error


def test_to_change_ones_mind_often_is_not_to_flap() -> None:
    policy = Scripted()
    controller = make(policy)
    for number in range(300):
        policy.want(("int8", "int4")[number // 3 % 2])
        controller.decide(at(number))
        policy.want("full", **{f"s{number}": "int4"})
        controller.decide(at(number))
    assert controller.num_faults == 0


def test_a_reload_may_bring_another_ladder_dwell_and_deadline() -> None:
    events: list[Event] = []
    policy = Scripted("int4")
    controller = make(policy, events=events, only={"full", "int4", "disabled"})
    controller.decide(at(0))
    policy.want("full")
    assert controller.decide(at(1)).reason_code == "guard_dwell"
    wanted = tuple(map(CacheMode, ("full", "int8", "disabled")))
    assert controller.check_ladder(wanted) == ("full", "disabled")
    controller.reload(policy, "again", ladder=wanted, min_dwell_s=1.0, deadline_s=1e-9)
    assert controller.ladder == ("full", "disabled")
    assert controller.decide(at(1)).mode == "int4"
    assert [event.error for event in events if isinstance(event, PolicyFault)] != []
    controller.reload(policy, "again", deadline_s=60.0)
    assert controller.ladder == ("full", "disabled")
    assert controller.decide(at(1)).mode == "full"
    with pytest.raises(ConfigError):
        controller.check_ladder((CacheMode("int8"),))


def test_reloading_ends_the_fallback_and_closes_what_was_before() -> None:
    broken, mended = Late(*[Fault("gone")] * MAX_FAULTS), Late(Decision("int8"))
    controller = make(broken, Scripted("int4"))
    controller.decide(at(0))
    controller.reload(mended, "mended")
    assert (controller.name, controller.policy_status) == ("mended", "ok")
    assert controller.decide(at(10)).mode == "int8"
    controller.reload(Scripted("int4"), "other")
    assert mended.is_closed
    assert controller.decide(at(20)).mode == "int4"
    assert controller.num_faults == MAX_FAULTS


def test_closing_lets_go_of_the_policy() -> None:
    policy = Late()
    controller = make(policy)
    controller.close()
    assert policy.is_closed
    make(Scripted()).close()
