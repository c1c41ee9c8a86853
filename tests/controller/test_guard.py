"""Whatever a policy answers, the guard's promises hold."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adaptive_kv.controller import Controller, Orders
from adaptive_kv.events import Event, PolicyFault
from adaptive_kv.policy import CacheMode, Cost, Decision, Reading
from adaptive_kv.testing import make_reading, make_sequence

LADDER = tuple(CacheMode(m) for m in ("full", "int8", "int4", "window:64+int4", "disabled"))
OFF_LADDER = tuple(CacheMode(m) for m in ("window:512", "window:16+int8"))
UNSUPPORTED = CacheMode("window:99")
DWELL_S, MAX_AGE_S, DEADLINE_S = 5.0, 2.0, 0.1

any_mode = st.sampled_from([*LADDER, *OFF_LADDER])
answers = st.one_of(
    st.none(),
    st.builds(
        Decision,
        st.sampled_from([*LADDER, *OFF_LADDER, UNSUPPORTED]),
        st.text(max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "c", "gone"]), any_mode),
        st.booleans(),
    ),
    st.sampled_from(["full", 3, float("nan"), b"", {"mode": "full"}, Decision]),
    st.builds(Decision, any_mode, admit=st.just(float("nan"))),
    st.builds(ZeroDivisionError, st.text(max_size=3)),
)


@dataclass
class Hostile:
    """Answers what it is told to, raises it if it is an exception, and takes its time."""

    answer: object = None
    took_s: float = 0.0
    clock_s: list[float] = field(default_factory=lambda: [0.0])

    def __call__(self, _now: Reading) -> Decision | None:
        self.clock_s[0] += self.took_s
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]

    def timer(self) -> float:
        return self.clock_s[0]


def make_controller(
    policy: Callable[[Reading], Decision | None],
    emit: Callable[[Event], None] = lambda _: None,
    timer: Callable[[], float] = time.perf_counter,
) -> Controller:
    return Controller(
        policy,
        name="hostile",
        fallback=lambda _: None,
        ladder=LADDER,
        min_dwell_s=DWELL_S,
        max_age_s=MAX_AGE_S,
        deadline_s=DEADLINE_S,
        emit=emit,
        is_supported=lambda mode: mode != UNSUPPORTED,
        timer=timer,
    )


costs = st.fixed_dictionaries(
    {mode: st.builds(Cost, bytes=st.integers(0, 1000)) for mode in [*LADDER, *OFF_LADDER]}
)
allowed = st.none() | st.frozensets(any_mode, min_size=1, max_size=3)


class Guarded(RuleBasedStateMachine):
    """A controller with a hostile policy, through any run of readings, pins and shortages."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = Hostile()
        self.events: list[Event] = []
        self.controller = make_controller(self.policy, self.events.append, self.policy.timer)
        self.twin = make_controller(self.policy, timer=self.policy.timer)
        """Remembers not whether all have what is wanted, and orders the same."""
        self.time_s = 100.0
        self.changed_s: float | None = None
        self.free_to_move = False
        self.sequence_changed_s: dict[str, float] = {}
        self.ordered: dict[str, CacheMode] = {}
        self.num_faults = 0

    def reading(self, table: dict[CacheMode, Cost], data: st.DataObject) -> Reading:
        ids = data.draw(st.sets(st.sampled_from("abc")))
        return make_reading(
            time_s=self.time_s,
            total_bytes=2000,
            free_bytes=data.draw(st.integers(0, 2000)),
            floor_bytes=data.draw(st.sampled_from([0, 300])),
            sample_age_s=data.draw(st.sampled_from([0.0, 1.9, 2.1, float("nan")])),
            mode=self.controller.mode,
            ladder=LADDER,
            costs=table,
            sequences=[
                make_sequence(
                    id_, mode=data.draw(any_mode), allow=data.draw(allowed), num_tokens=10
                )
                for id_ in sorted(ids)
            ],
        )

    @rule(gap_s=st.sampled_from([0.01, 1.0, 5.0, 30.0]))
    def wait(self, gap_s: float) -> None:
        self.time_s += gap_s

    @rule(mode=any_mode)
    def pin(self, mode: CacheMode) -> None:
        assert self.controller.pin(mode) == self.twin.pin(mode) is True
        self.free_to_move = True
        self.sequence_changed_s.clear()
        self.ordered.clear()

    @rule()
    def pin_what_the_model_cannot_have(self) -> None:
        before = self.controller.pinned
        assert not self.controller.pin(UNSUPPORTED)
        assert self.controller.pinned == before

    @precondition(lambda self: self.controller.is_pinned)
    @rule()
    def unpin(self) -> None:
        self.controller.unpin()
        self.twin.unpin()
        assert not self.controller.is_pinned

    @rule(answer=answers, took_s=st.sampled_from([0.0, 0.0, 0.2]), table=costs, data=st.data())
    def decide(
        self, answer: object, took_s: float, table: dict[CacheMode, Cost], data: st.DataObject
    ) -> None:
        self.policy.answer, self.policy.took_s = answer, took_s
        first = self.reading(table, data)
        memory = replace(first.memory, free_bytes=data.draw(st.integers(0, 2000)))
        for reading in (first, replace(first, memory=memory)):
            before = self.controller.mode
            orders = self.controller.decide(reading)
            self.twin._fulfilled = None
            assert self.twin.decide(reading) == orders
            self.check_orders(orders, reading)
            self.check_change(before, orders.mode, reading)
            self.check_sequences(orders, reading)
            self.note(before, orders)

    @rule(table=costs, data=st.data())
    def run_out(self, table: dict[CacheMode, Cost], data: st.DataObject) -> None:
        reading, before = self.reading(table, data), self.controller.mode
        orders = self.controller.step_down(reading)
        assert self.twin.step_down(reading) == orders
        if orders is None:
            assert self.controller.mode == before
            return
        self.check_orders(orders, reading)
        if orders.mode != before:
            assert table[orders.mode].bytes < table[before].bytes
        moved = [s for s in reading.sequences if orders.modes[s.id] != self.last(reading, s.id)]
        assert moved or not reading.sequences
        for sequence in moved:
            last, now = self.last(reading, sequence.id), orders.modes[sequence.id]
            assert sequence.permits(now)
            assert table[now].bytes < table[last].bytes
        self.note(before, orders)

    def last(self, reading: Reading, id_: str) -> CacheMode:
        return self.ordered.get(id_) or next(s.mode for s in reading.sequences if s.id == id_)

    def check_orders(self, orders: Orders, reading: Reading) -> None:
        fresh = reading.memory.sample_age_s <= MAX_AGE_S
        above_bytes = max(0, reading.memory.free_bytes - reading.memory.floor_bytes)
        assert orders.allowance_bytes == (above_bytes if fresh else 0)
        assert isinstance(orders.admit, bool)
        assert orders.mode == self.controller.mode != UNSUPPORTED
        assert orders.modes.keys() == {sequence.id for sequence in reading.sequences}

    def check_change(self, before: CacheMode, after: CacheMode, reading: Reading) -> None:
        grows = reading.costs[after].bytes > reading.costs[before].bytes
        if self.is_up(after, before, reading) or grows:
            assert reading.memory.sample_age_s <= MAX_AGE_S
            assert reading.memory.headroom_bytes >= 0
            growth_bytes = reading.costs[after].bytes - reading.costs[before].bytes
            assert growth_bytes <= reading.memory.headroom_bytes
        if self.is_up(after, before, reading) and not self.free_to_move:
            assert self.changed_s is None or self.time_s - self.changed_s >= DWELL_S

    def check_sequences(self, orders: Orders, reading: Reading) -> None:
        for sequence in reading.sequences:
            last, now = self.last(reading, sequence.id), orders.modes[sequence.id]
            assert sequence.permits(now)
            if now != last and sequence.permits(last) and self.is_up(now, last, reading):
                assert reading.memory.sample_age_s <= MAX_AGE_S
                assert reading.memory.headroom_bytes >= 0
                since_s = self.sequence_changed_s.get(sequence.id)
                assert since_s is None or self.time_s - since_s >= DWELL_S

    def is_up(self, after: CacheMode, before: CacheMode, reading: Reading) -> bool:
        if after in LADDER and before in LADDER:
            return LADDER.index(after) < LADDER.index(before)
        return after != before and reading.costs[after].bytes >= reading.costs[before].bytes

    def note(self, before: CacheMode, orders: Orders) -> None:
        if orders.mode != before:
            self.changed_s, self.free_to_move = self.time_s, False
        changed = {id_ for id_, mode in orders.modes.items() if self.ordered.get(id_) != mode}
        self.sequence_changed_s = {
            id_: self.time_s if id_ in changed and id_ in self.ordered
            else self.sequence_changed_s.get(id_, float("-inf"))
            for id_ in orders.modes
        }  # fmt: skip
        self.ordered = dict(orders.modes)

    @invariant()
    def faults_are_counted_and_told(self) -> None:
        told = [event for event in self.events if isinstance(event, PolicyFault)]
        assert len(told) == len(self.events) <= self.controller.num_faults
        assert self.controller.policy_status in {"ok", "faulty", "fallback"}
        if self.controller.policy_status == "ok":
            assert len(told) == self.controller.num_faults


Guarded.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestGuarded = Guarded.TestCase


@given(free=st.integers(0, 2000), floor=st.integers(0, 2000), age=st.floats(0, 4))
def test_the_allowance_is_what_lies_above_the_floor_and_nothing_when_blind(
    free: int, floor: int, age: float
) -> None:
    controller = make_controller(lambda _: None)
    orders = controller.decide(
        make_reading(total_bytes=2000, free_bytes=free, floor_bytes=floor, sample_age_s=age)
    )
    assert orders.allowance_bytes == (max(0, free - floor) if age <= MAX_AGE_S else 0)
