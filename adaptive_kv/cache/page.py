"""Pages: constant bytes each, handed out lowest first, so that high slabs run empty.

    slab 0                  slab 1                  slab 2 (given back)
    | p0 | p1 | p2 | p3 |   | p4 | p5 | -- | -- |   . . . . . . . . . .
                                        \\ free; the last one is the spare

One free page is always kept as the spare: with it, a whole pool can be converted in place. The
pool of scales keeps more, as many as a slab of pages may need until it runs empty.
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from adaptive_kv.cache.geometry import PageShape
from adaptive_kv.cache.slab import Budget, Slab

if TYPE_CHECKING:
    from adaptive_kv.cache.prefixes import Block

NUM_SPARE = 1


@dataclass(slots=True, eq=False)
class Page:
    """One page of a sequence: tokens `[start, start + num_tokens)` in one format.

    `id` is its place in the pool and may change when slabs are emptied; nobody keeps a copy of it
    beyond a step. `side` is the place of its scales in the side pool, `block` what others may share
    it by.
    """

    id: int
    format: str
    start: int
    num_tokens: int = 0
    is_exact: bool = True
    side: "Page | None" = None
    block: "Block | None" = None

    @property
    def stop(self) -> int:
        """The position after the last stored token."""
        return self.start + self.num_tokens


class PagePool:
    """Pages of one size, in slabs that come and go.

    `epoch` changes whenever a live page moved: addresses computed before are void. `num_spare`
    free pages are kept for switches while any page is in use.
    """

    def __init__(
        self,
        shape: PageShape,
        slab_bytes: int,
        budget: Budget,
        device: torch.device,
        num_spare: int = NUM_SPARE,
    ) -> None:
        self.shape = shape
        self.num_spare = num_spare
        self.pages_per_slab = max(2, slab_bytes // shape.num_bytes)
        self.epoch = 0
        self._budget = budget
        self.device = device
        self._slabs: dict[int, Slab] = {}
        self._free: list[int] = []
        self._live: dict[int, Page] = {}
        self.num_by_format: Counter[str] = Counter()
        """Pages in use; any thread may look."""

    @property
    def slab_bytes(self) -> int:
        """Bytes of one slab of this pool."""
        return self.pages_per_slab * self.shape.num_bytes

    @property
    def num_slabs(self) -> int:
        """Slabs held now."""
        return len(self._slabs)

    @property
    def num_live(self) -> int:
        """Pages in use."""
        return len(self._live)

    @property
    def num_free(self) -> int:
        """Free pages of the slabs held, the spare included."""
        return len(self._free)

    def take(
        self,
        format_name: str,
        start: int,
        *,
        may_use_spare: bool = False,
        is_exchange: bool = False,
    ) -> Page:
        """A page, at the lowest free place; grows by a slab where none is free.

        Only a switch may use the spare; `is_exchange` is as `Budget.take_slab` has it. Raises
        `torch.OutOfMemoryError`; nothing is taken then.
        """
        if len(self._free) <= (0 if may_use_spare else self.num_spare):
            self._grow(is_exchange=is_exchange)
        page = Page(heapq.heappop(self._free), format_name, start)
        self._live[page.id] = page
        self.num_by_format[format_name] += 1
        self._slab_of(page.id).num_live += 1
        return page

    def give(self, pages: Iterable[Page]) -> None:
        """Free pages; their slabs stay until `trim`."""
        for page in pages:
            del self._live[page.id]
            self.num_by_format[page.format] -= 1
            heapq.heappush(self._free, page.id)
            self._slab_of(page.id).num_live -= 1

    def trim(self, min_slabs: int = 0) -> None:
        """Give back empty slabs, highest first, as long as a spare page stays for those in use."""
        empty = [number for number, slab in self._slabs.items() if slab.num_live == 0]
        for number in sorted(empty, reverse=True):
            num_left = len(self._free) - self.pages_per_slab
            if len(self._slabs) > min_slabs and (num_left >= self.num_spare or not self._live):
                self._free_places_outside(number)
                self._forget(number)

    def keep_spare(self, max_needed: int) -> None:
        """Take a slab now if fewer are free than should be, so that a later switch needs none.

        More than `max_needed` it will not need. Raises `torch.OutOfMemoryError`.
        """
        if len(self._free) < min(self.num_spare, max_needed):
            self._grow()

    def empty_one_slab(self, max_pages: int | None = None) -> int:
        """Move pages of the emptiest slab elsewhere if all of them fit, and give it back.

        Where there are more than `max_pages`, it takes further calls. Returns the bytes moved; 0
        when there was nothing to gain.
        """
        if len(self._free) < self.pages_per_slab + self.num_spare or len(self._slabs) < 2:
            return 0
        number = min(self._slabs, key=lambda n: (self._slabs[n].num_live, -n))
        inside = self._free_places_outside(number)
        moving = [place for place in inside if place in self._live][:max_pages]
        for place in moving:
            self._move(self._live.pop(place))
        if self._slabs[number].num_live == 0:
            self._forget(number)
        else:
            for place in inside:
                if place not in self._live:
                    heapq.heappush(self._free, place)
        return len(moving) * self.shape.num_bytes

    def slab_and_index(self, page: Page) -> tuple[Slab, int]:
        """The slab a page lies in, and its index there."""
        number, index = divmod(page.id, self.pages_per_slab)
        return self._slabs[number], index

    def addresses(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """By the id of a page: where its first piece of keys is, and where one of values would be
        in the same place; `[pages, 2]`.

        `Slab` draws how far the others are from there.
        """
        starts = np.zeros(max(self._slabs, default=0) + 1, np.int64)
        for number, slab in self._slabs.items():
            starts[number] = slab.address
        numbers, index = np.divmod(places, self.pages_per_slab)
        steps = np.array([self.shape.key_bytes, self.shape.value_bytes])
        found: npt.NDArray[np.int64] = starts[numbers, None] + index[:, None] * steps
        return found

    def slab_number(self, page: Page) -> int:
        """The number of the slab a page lies in."""
        return page.id // self.pages_per_slab

    def slab(self, number: int) -> Slab:
        """A slab by its number."""
        return self._slabs[number]

    def check(self) -> None:
        """Every place is either free or live, once; counts agree. Cheap enough for idle time."""
        places = sorted([*self._free, *self._live])
        expected = [
            number * self.pages_per_slab + index
            for number in sorted(self._slabs)
            for index in range(self.pages_per_slab)
        ]
        assert places == expected, "a page is lost or owned twice"
        assert sum(slab.num_live for slab in self._slabs.values()) == len(self._live)
        assert all(page.id == place for place, page in self._live.items())
        assert +self.num_by_format == Counter(page.format for page in self._live.values())

    def _move(self, page: Page) -> None:
        old, index = self._slab_of(page.id), page.id % self.pages_per_slab
        page.id = heapq.heappop(self._free)
        slab, new_index = self.slab_and_index(page)
        slab.copy_page(new_index, old, index)
        slab.num_live += 1
        old.num_live -= 1
        self._live[page.id] = page
        self.epoch += 1

    def _grow(self, *, is_exchange: bool = False) -> None:
        self._budget.take_slab(self.slab_bytes, is_exchange=is_exchange)
        number = next(n for n in range(len(self._slabs) + 1) if n not in self._slabs)
        try:
            self._slabs[number] = Slab(self.shape, self.pages_per_slab, self.device)
        except torch.OutOfMemoryError:
            self._budget.give_slab(self.slab_bytes)
            raise
        first = number * self.pages_per_slab
        for place in range(first, first + self.pages_per_slab):
            heapq.heappush(self._free, place)

    def _free_places_outside(self, number: int) -> range:
        """Take the places of a slab off the free list; returns all its places."""
        first = number * self.pages_per_slab
        inside = range(first, first + self.pages_per_slab)
        self._free = [place for place in self._free if place not in inside]
        heapq.heapify(self._free)
        return inside

    def _forget(self, number: int) -> None:
        self._slabs.pop(number).release()
        self._budget.give_slab(self.slab_bytes)

    def _slab_of(self, place: int) -> Slab:
        return self._slabs[place // self.pages_per_slab]
