"""The ladder of modes: what is up, what is down, and what a sequence gets that may not have all."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from adaptive_kv.errors import ConfigError
from adaptive_kv.policy import CacheMode, Cost

Costs = Mapping[CacheMode, Cost]

_FORMATS = ("full", "int8", "int4")


class Rungs:
    """The modes of the configured ladder that the model supports, but for those struck, top first.

    What is struck loses too much on this model: nobody chooses it, but who names it has it.
    Raises `ConfigError` when no rung is left.
    """

    def __init__(
        self,
        ladder: Sequence[CacheMode],
        supports: Callable[[CacheMode], bool],
        is_struck: Callable[[CacheMode], bool] = lambda _: False,
    ) -> None:
        supported = [mode for mode in ladder if supports(mode)]
        self.ladder = tuple(mode for mode in supported if not is_struck(mode))
        self.supports = supports
        if not supported:
            raise ConfigError(f"cache.ladder: this model supports none of {', '.join(ladder)}")
        if not self.ladder:
            raise ConfigError(
                f"cache.ladder: on this model {', '.join(supported)} lose more than cache.max_kl; "
                "add full, or raise cache.max_kl"
            )

    @property
    def top(self) -> CacheMode:
        """The mode wanted with room to spare."""
        return self.ladder[0]

    def is_up(self, target: CacheMode, current: CacheMode, costs: Costs) -> bool:
        """Whether `target` is higher: by the ladder, or by bytes where the ladder has it not.

        What cannot be told apart counts as up, the direction that the guard is careful in.
        """
        if target in self.ladder and current in self.ladder:
            return self.ladder.index(target) < self.ladder.index(current)
        if target in costs and current in costs:
            return costs[target].bytes >= costs[current].bytes
        return self._place(target) <= self._place(current)

    def between(self, target: CacheMode, current: CacheMode, costs: Costs) -> tuple[CacheMode, ...]:
        """The rungs strictly between two modes, those nearest to `target` first."""
        start, end = self._place(target), self._place(current)
        low, high, is_up = min(start, end), max(start, end), self.is_up(target, current, costs)
        inside = [
            mode
            for i, mode in enumerate(self.ladder)
            if low < i < high and self.is_up(mode, current, costs) == is_up
        ]
        return tuple(inside if start < end else reversed(inside))

    def mode_for(self, allow: Collection[CacheMode] | None, wanted: CacheMode) -> CacheMode | None:
        """The mode of a sequence that permits `allow` (None: all) when `wanted` is ordered.

        `wanted` itself, or the nearest permitted rung below it, or above it, or any permitted
        mode. None only if it permits nothing that the model supports.
        """
        if allow is None or wanted in allow:
            return wanted
        place = self._place(wanted)
        above = [mode for i, mode in enumerate(self.ladder) if i < place]
        below = [mode for i, mode in enumerate(self.ladder) if i > place]
        others = sorted(mode for mode in allow if self.supports(mode))
        return _first((*below, *reversed(above), *others), lambda mode: mode in allow)

    def next_below(
        self, mode: CacheMode, allow: Collection[CacheMode] | None, costs: Costs
    ) -> CacheMode | None:
        """The next permitted rung under `mode` that needs fewer bytes, or None."""
        below = (rung for i, rung in enumerate(self.ladder) if i > self._place(mode))
        return _first(
            below,
            lambda rung: (allow is None or rung in allow) and _is_smaller(rung, mode, costs),
        )

    def _place(self, mode: CacheMode) -> float:
        """Where `mode` stands, 0 at the top; between two rungs if it is none."""
        if mode in self.ladder:
            return self.ladder.index(mode)
        return sum(_size(rung) >= _size(mode) for rung in self.ladder) - 0.5


def _is_smaller(mode: CacheMode, than: CacheMode, costs: Costs) -> bool:
    """By the costs; where they say nothing, the ladder's order is believed."""
    return mode not in costs or than not in costs or costs[mode].bytes < costs[than].bytes


def _size(mode: CacheMode) -> tuple[float, int]:
    """How modes compare for a long sequence."""
    if mode.is_disabled:
        return (0.0, 0)
    return (mode.window or float("inf"), -_FORMATS.index(mode.page_format))


def _first(modes: Iterable[CacheMode], is_good: Callable[[CacheMode], bool]) -> CacheMode | None:
    return next((mode for mode in modes if is_good(mode)), None)
