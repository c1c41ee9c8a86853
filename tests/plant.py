"""A box in a few lines: memory that others take, and a cache that follows its orders slowly."""

from dataclasses import dataclass, field

from adaptive_kv.controller import Controller
from adaptive_kv.policy import CacheMode, Cost, Policy, Reading
from adaptive_kv.testing import DEFAULT_LADDER, make_reading, make_sequence

MIB = 2**20
SIZES = {"full": 1000, "int8": 530, "int4": 280, "window:1024+int4": 60, "disabled": 120}
COSTS = {CacheMode(mode): Cost(bytes=size * MIB) for mode, size in SIZES.items()}


def box(free: int, mode: str = "full", **more: object) -> Reading:
    """4000 MiB of which 100 are the floor; `free` MiB are free."""
    return make_reading(
        total_bytes=4000 * MIB, free_bytes=free * MIB, floor_bytes=100 * MIB, mode=mode,
        **({"costs": COSTS} | more),  # type: ignore[arg-type]
    )  # fmt: skip


@dataclass
class Plant:
    """A box in MiB: the cache follows its orders at a limited speed, others come and go."""

    total: float = 4000
    floor: float = 100
    weights: float = 1000
    others: float = 500
    cache: float = 1000
    mode: str = "full"
    time_s: float = 0.0
    mode_since_s: float = 0.0
    free_before: float = 0.0
    num_below_floor: int = 0
    modes: list[str] = field(default_factory=lambda: ["full"])

    step_s = 0.05
    max_change = 100.0

    @property
    def free(self) -> float:
        return self.total - self.weights - self.others - self.cache

    def reading(self) -> Reading:
        slope = (self.free - self.free_before) / self.step_s
        self.free_before = self.free
        ahead_s = max(0.0, self.free - self.floor) / -slope if slope < 0 else None
        return make_reading(
            time_s=self.time_s,
            total_bytes=int(self.total * MIB),
            free_bytes=max(0, int(self.free * MIB)),
            floor_bytes=int(self.floor * MIB),
            mode=self.mode,
            mode_age_s=self.time_s - self.mode_since_s,
            costs=COSTS,
            sequences=[make_sequence(mode=self.mode, cache_bytes=int(self.cache * MIB))],
            seconds_to_floor=ahead_s,
        )

    def run(self, controller: Controller, seconds: float, others: float, rate: float) -> None:
        """Let others approach `others` MiB at `rate` MiB/s, and the cache its mode's size."""
        for _ in range(round(seconds / self.step_s)):
            self.time_s += self.step_s
            orders = controller.decide(self.reading())
            if orders.mode != self.mode:
                self.mode, self.mode_since_s = orders.mode, self.time_s
                self.modes.append(orders.mode)
            self.others += _toward(others - self.others, rate * self.step_s)
            self.cache += _toward(SIZES[self.mode] - self.cache, self.max_change)
            self.num_below_floor += self.free < self.floor


def _toward(distance: float, most: float) -> float:
    return max(-most, min(most, distance))


def closed_loop(policy: Policy) -> tuple[Plant, Controller]:
    plant = Plant()
    controller = Controller(
        policy,
        name="tested",
        fallback=lambda _: None,
        ladder=tuple(CacheMode(mode) for mode in DEFAULT_LADDER),
        min_dwell_s=5.0,
        max_age_s=2.0,
        deadline_s=60.0,
        emit=lambda _: None,
    )
    plant.free_before = plant.free
    return plant, controller
