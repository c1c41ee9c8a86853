"""The tables of a reading: taken from a snapshot, and made only as far as somebody looks.

A policy that holds looks at one or two modes, and at no sequence, of what is read before every
step.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import overload

from adaptive_kv.policy import CacheMode, Cost, SequenceInfo


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


class SequenceTable(Sequence[SequenceInfo]):
    """As a tuple of them; `make`, called once if at all, must depend on nothing that changes.

    `who` has something in place of each that is equal as long as it is the same sequence.
    """

    __slots__ = ("_made", "_make", "who")

    def __init__(
        self, who: tuple[Hashable, ...], make: Callable[[], tuple[SequenceInfo, ...]]
    ) -> None:
        self.who = who
        self._make = make
        self._made: tuple[SequenceInfo, ...] | None = None

    @property
    def _all(self) -> tuple[SequenceInfo, ...]:
        if self._made is None:
            self._made = self._make()
        return self._made

    @overload
    def __getitem__(self, place: int) -> SequenceInfo: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[SequenceInfo, ...]: ...

    def __getitem__(self, place: int | slice) -> SequenceInfo | tuple[SequenceInfo, ...]:
        return self._all[place]

    def __iter__(self) -> Iterator[SequenceInfo]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self.who)

    def __eq__(self, other: object) -> bool:
        return self._all == (other._all if isinstance(other, SequenceTable) else other)

    def __hash__(self) -> int:
        return hash(self._all)

    def __repr__(self) -> str:
        return repr(self._all)


def who(sequences: Sequence[SequenceInfo]) -> tuple[Hashable, ...]:
    """Tells whether it is still the same ones, without looking at what changes."""
    if isinstance(sequences, SequenceTable):
        return sequences.who
    return tuple((sequence.id, sequence.allow) for sequence in sequences)
