"""The cost table of a moment: computed from a snapshot, and only for the modes that are asked for.

A policy that holds looks at one or two modes of a table that is made before every step.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from adaptive_kv.policy import CacheMode, Cost


class CostTable(Mapping[CacheMode, Cost]):
    """Immutable to whoever reads it; `compute` must depend on nothing that changes."""

    __slots__ = ("_compute", "_costs")

    def __init__(self, modes: Iterable[CacheMode], compute: Callable[[CacheMode], Cost]) -> None:
        self._compute = compute
        self._costs: dict[CacheMode, Cost | None] = dict.fromkeys(modes)

    def __getitem__(self, mode: CacheMode) -> Cost:
        cost = self._costs[mode]
        if cost is None:
            cost = self._costs[mode] = self._compute(CacheMode(mode))  # a plain string will do
        return cost

    def __contains__(self, mode: object) -> bool:
        return mode in self._costs

    def __iter__(self) -> Iterator[CacheMode]:
        return iter(self._costs)

    def __len__(self) -> int:
        return len(self._costs)

    def __repr__(self) -> str:
        return f"CostTable({dict(self)!r})"
