"""The closed loop: a policy under the real controller and guard, on memory that it changes itself.

What others left is taken from the trace: free memory plus our cache. The cache is what the
simulated modes weigh. The policy sees one minus the other, and its trend.
"""

from adaptive_kv.controller import Controller, Orders
from adaptive_kv.policy import CacheMode, Cost, Load, Memory, Policy, Reading
from adaptive_kv.replay.course import Course
from adaptive_kv.replay.crowd import Crowd, Live
from adaptive_kv.replay.figures import Figures, Ledger
from adaptive_kv.replay.trend import Trend
from adaptive_kv.tables import CostTable
from adaptive_kv.trace import Header, Moment

_NOTHING = Cost(bytes=0)


class Simulation:
    """One policy, moment by moment. `fallback` takes over from one that stays wrong."""

    def __init__(
        self,
        header: Header,
        policy: Policy,
        name: str,
        *,
        fallback: Policy,
        course: Course | None = None,
    ) -> None:
        self._header = header
        self._name = name
        self._course = course
        self._crowd = Crowd(header)
        self._ledger = Ledger()
        self._trend = Trend()
        self._controller = Controller(
            policy,
            name=name,
            fallback=fallback,
            ladder=header.ladder,
            min_dwell_s=header.min_dwell_s,
            max_age_s=header.max_age_s,
            deadline_s=float("inf"),
            emit=lambda _: None,
            is_supported=header.curves.__contains__,
        )
        self._modes = (*dict.fromkeys((*self._controller.ladder, *header.curves)),)
        self._mode = self._controller.mode
        self._now_s = 0.0
        self._held_bytes = 0
        self._room_bytes = 0

    def step(self, moment: Moment) -> None:
        """One moment: what was recorded happens, then the policy answers."""
        others_bytes = moment.free_bytes + moment.cache_bytes
        gains = self._crowd.follow(moment.sequences, moment.time_s)
        for live, num_tokens in gains:
            mode = live.mode if live.is_running else None
            self._ledger.generate(num_tokens, mode, is_exact=live.is_exact)
        self._trend.add(moment.time_s, others_bytes - self._held_bytes)
        has_parked = self._fit(moment)
        self._spend(moment, others_bytes)
        orders = self._controller.decide(self._read(moment))
        self._apply(orders)
        has_parked |= self._fit(moment)
        self._expire(moment)
        if orders.admit and not has_parked:
            self._admit(moment, orders)
            self._fit(moment)
        self._held_bytes = self._crowd.held_bytes()
        self._room_bytes = others_bytes - self._held_bytes - moment.floor_bytes
        if self._course is not None:
            free_bytes = others_bytes - self._held_bytes
            modes = [live.mode for live in self._crowd if live.is_running]
            place = (moment.time_s, free_bytes, moment.floor_bytes, self._held_bytes)
            self._course.add(*place, modes)

    def figures(self) -> Figures:
        """What it came to so far."""
        self._ledger.counts["policy_faults"] = self._controller.num_faults
        self._ledger.counts["rejected"] = self._crowd.num_rejected
        return self._ledger.figures(self._name, self._controller.ladder)

    def _spend(self, moment: Moment, others_bytes: int) -> None:
        """Account for the time since the last moment, in which nobody decided anything."""
        held_bytes = self._crowd.held_bytes()
        room_bytes = others_bytes - held_bytes - moment.floor_bytes
        self._ledger.spend(
            moment.time_s - self._now_s,
            (self._room_bytes, room_bytes),
            (self._held_bytes, held_bytes),
        )
        self._now_s, self._held_bytes = moment.time_s, held_bytes

    def _read(self, moment: Moment) -> Reading:
        crowd, controller = self._crowd, self._controller
        running = crowd.running()
        held_bytes = crowd.held_bytes()
        free_bytes = moment.free_bytes + moment.cache_bytes - held_bytes

        def cost(mode: CacheMode) -> Cost:
            step_bytes = moment.step_bytes.get(mode, 0)
            return Cost(
                bytes=step_bytes + sum([crowd.bytes(live, mode) for live in running]),
                transient_bytes=step_bytes,
                token_s=moment.token_s.get(mode),
                exact=mode.is_exact,
            )

        return Reading(
            time_s=moment.time_s,
            step=moment.step,
            memory=Memory(
                total_bytes=moment.total_bytes,
                free_bytes=max(0, free_bytes),
                floor_bytes=moment.floor_bytes,
                weights_bytes=moment.weights_bytes,
                cache_bytes=held_bytes,
                source=moment.source,
                sample_age_s=moment.sample_age_s,
            ),
            seconds_to_floor=self._trend.seconds_to(moment.floor_bytes),
            latency=moment.latency,
            load=Load(
                running=len(running),
                waiting=moment.waiting + len(crowd.waiting()),
                tokens_per_s=moment.tokens_per_s,
            ),
            device=moment.device,
            mode=controller.mode,
            mode_age_s=max(0.0, moment.time_s - controller.mode_since_s),
            ladder=controller.ladder,
            costs=CostTable(self._modes, cost),
            sequences=tuple([live.info() for live in running]),
        )

    def _apply(self, orders: Orders) -> None:
        """Set modes; pages follow before the next moment."""
        counts = self._ledger.counts
        counts["mode_changes"] += orders.mode != self._mode
        self._mode = orders.mode
        for live in self._crowd:
            target = orders.modes.get(live.id, live.mode)
            if target != live.mode and live.is_running:
                is_up = self._place(target, live) < self._place(live.mode, live)
                counts["switches_up" if is_up else "switches_down"] += 1
                live.mode = target
                self._crowd.weigh(live)

    def _place(self, mode: CacheMode, live: Live) -> float:
        """How far down a mode is: on the ladder, or else by its bytes."""
        if mode in self._controller.ladder:
            return self._controller.ladder.index(mode)
        one_bytes = self._crowd.bytes(live, mode)
        rungs = self._controller.ladder
        return sum(self._crowd.bytes(live, rung) >= one_bytes for rung in rungs) - 0.5

    # What the service does by itself

    def _most_bytes(self, moment: Moment, mode: CacheMode) -> int:
        """What the cache may take: nothing new where that would break the floor or the budget."""
        most_bytes = moment.free_bytes + moment.cache_bytes - moment.floor_bytes
        if self._header.budget_bytes is not None:
            kept_bytes = moment.weights_bytes + moment.step_bytes.get(mode, 0)
            most_bytes = min(most_bytes, self._header.budget_bytes - kept_bytes)
        return most_bytes

    def _fit(self, moment: Moment) -> bool:
        """Go down and park until what is needed can be had; whether anybody was parked."""
        most_bytes = max(self._held_bytes, self._most_bytes(moment, self._controller.mode))
        if self._crowd.held_bytes() <= most_bytes:
            return False
        self._ledger.counts["rescues"] += 1
        num_parked = 0
        while self._crowd.held_bytes() > most_bytes:
            orders = self._controller.step_down(self._read(moment))
            if orders is not None:
                self._apply(orders)
                continue
            running = self._crowd.running()
            if not running:
                break
            self._park(running[-1], moment.time_s)
            num_parked += 1
        return num_parked > 0

    def _park(self, live: Live, time_s: float) -> None:
        self._ledger.counts["parked"] += 1
        live.is_running, live.since_s = False, time_s
        live.gap_tokens = 0
        self._crowd.weigh(live)

    def _expire(self, moment: Moment) -> None:
        for live in self._crowd.waiting():
            if moment.time_s - live.since_s > self._header.max_wait_s:
                live.is_rejected = True

    def _admit(self, moment: Moment, orders: Orders) -> None:
        """Let in whoever fits beside those that run, all their tokens stored."""
        crowd = self._crowd
        running = crowd.running()
        for live in crowd.waiting():
            if len(running) >= self._header.max_running:
                return
            mode = self._controller.mode_for(live.allow, orders.mode) or live.mode
            if not self._fits(moment, live, mode, running):
                if running:
                    return
                continue
            live.is_running, live.mode = True, mode
            crowd.weigh(live)
            running.append(live)

    def _fits(self, moment: Moment, live: Live, mode: CacheMode, running: list[Live]) -> bool:
        crowd, most_bytes = self._crowd, self._most_bytes(moment, mode)
        if running:
            needed_bytes = sum([each.whole_bytes for each in running])
            needed_bytes += crowd.bytes(live, mode) + self._header.slab_bytes
            return needed_bytes <= max(most_bytes, self._held_bytes)
        permitted = [m for m in self._controller.ladder if live.allow is None or m in live.allow]
        return any(crowd.bytes(live, each) <= most_bytes for each in (mode, *permitted))
