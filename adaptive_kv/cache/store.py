"""The pages of all sequences: one pool of pages and one of scales for each group of layers."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from adaptive_kv.cache.formats import Format, Full, make_formats
from adaptive_kv.cache.formats.lines import BITS_AT
from adaptive_kv.cache.geometry import PAGE_TOKENS_16_BIT, Keep, LayerGroup
from adaptive_kv.cache.page import NUM_SPARE, Page, PagePool
from adaptive_kv.cache.prefixes import Prefixes
from adaptive_kv.cache.slab import Budget

_MOVED_AT_ONCE = 8
"""So many pages are moved together: finding out which costs as much as moving a few."""


class GroupPages:
    """Pages of one layer group, with scales beside those that are packed.

    So many scales are kept free that packing can go on until all full pages are packed, or it has
    emptied a slab of pages and may take more of what that gave back: packing under pressure needs
    no memory that was not there before.

    `release` frees something that nobody uses; False where there is nothing.
    """

    def __init__(
        self,
        group: LayerGroup,
        slab_bytes: int,
        budget: Budget,
        device: torch.device,
        release: Callable[[], bool],
    ) -> None:
        self.group = group
        self._release = release
        self.formats: dict[str, Format] = make_formats(group)
        self._bits = {
            name: 16 * PAGE_TOKENS_16_BIT // form.tokens_per_page
            for name, form in self.formats.items()
        }
        self.pages = PagePool(group.page_shape, slab_bytes, budget, device)
        # Packing into int8 frees one page for each place of scales that it takes.
        num_sides, shape = self.pages.pages_per_slab, group.side_shape
        self.sides = PagePool(shape, num_sides * shape.num_bytes, budget, device, num_sides)

    @property
    def full(self) -> Full:
        """The format that new tokens are written in."""
        full = self.formats["full"]
        assert isinstance(full, Full)
        return full

    @property
    def used_bytes(self) -> int:
        """Bytes of pages and scales in use."""
        pages, sides = self.pages, self.sides
        return pages.num_live * pages.shape.num_bytes + sides.num_live * sides.shape.num_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes of free pages in slabs held, but the spare."""
        return max(0, self.pages.num_free - NUM_SPARE) * self.pages.shape.num_bytes

    def page_bytes(self, format_name: str) -> int:
        """Bytes that one page in this format weighs, its scales included."""
        side = self.sides.shape.num_bytes if self.formats[format_name].is_packed else 0
        return self.pages.shape.num_bytes + side

    def lines(self, pages: Sequence[Page]) -> npt.NDArray[np.int64]:
        """The lines of pages in a page table, as `PageTable` describes them."""
        found = np.zeros((len(pages), 6), np.int64)
        found[:, :2] = self.pages.addresses(_numbers(page.id for page in pages))
        sides = [(place, page.side.id) for place, page in enumerate(pages) if page.side is not None]
        if sides:
            of, at = np.array(sides).T
            found[of, 2:4] = self.sides.addresses(at)
        found[:, BITS_AT] = _numbers(self._bits[page.format] for page in pages)
        found[:, 5] = _numbers(page.start for page in pages)
        return found

    def take(self, format_name: str, start: int, *, may_use_spare: bool = False) -> Page:
        """One page, of what nobody uses if need be.

        Raises `torch.OutOfMemoryError`; nothing is taken then.
        """
        while True:
            try:
                return self._take(format_name, start, may_use_spare=may_use_spare)
            except torch.OutOfMemoryError:
                if not self._release():
                    raise

    def _take(self, format_name: str, start: int, *, may_use_spare: bool) -> Page:
        page = self.pages.take(format_name, start, may_use_spare=may_use_spare)
        try:
            if self.formats[format_name].is_packed:
                page.side = self._take_side(start)
            elif not may_use_spare:
                self.sides.keep_spare(self.pages.num_by_format["full"])
        except torch.OutOfMemoryError:
            self.pages.give([page])
            self._trim()
            raise
        return page

    def give(self, pages: Iterable[Page]) -> None:
        """Free pages and give empty slabs back to the device at once."""
        pages = list(pages)
        self.pages.give(pages)
        self.sides.give(page.side for page in pages if page.side is not None)
        self._trim()

    def empty_one_slab(self, max_bytes: int) -> int:
        """Bytes moved to give one more slab back, about `max_bytes` at most, and a few pages at
        least; 0 when there was nothing to gain."""
        for pool in (self.pages, self.sides):
            max_pages = max(_MOVED_AT_ONCE, max_bytes // pool.shape.num_bytes)
            if moved_bytes := pool.empty_one_slab(max_pages):
                self._trim()
                return moved_bytes
        return 0

    def check(self) -> None:
        """Raise AssertionError if a page is lost or owned twice."""
        self.pages.check()
        self.sides.check()
        num_packed = self.sides.num_live
        assert num_packed <= self.pages.num_live, "scales without a page"

    def _take_side(self, start: int) -> Page:
        """A place for scales; where there is no memory for more, of what packing has freed."""
        try:
            return self.sides.take("scales", start, may_use_spare=True)
        except torch.OutOfMemoryError:
            self.pages.empty_one_slab()
        return self.sides.take("scales", start, may_use_spare=True, is_exchange=True)

    def _trim(self) -> None:
        self.pages.trim()
        self.sides.trim(min_slabs=1 if self.pages.num_live else 0)


class PageStore:
    """What the engine owns of the cache; `SequenceCache` takes its pages here."""

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        *,
        keep: Keep,
        slab_bytes: int,
        budget: Budget,
        device: torch.device,
        shares_prefixes: bool = True,
    ) -> None:
        self.keep = keep
        self.shares_prefixes = shares_prefixes
        self.budget = budget
        self.device = device
        self.prefixes = Prefixes(
            groups, keep, budget, lambda group, pages: self.groups[group].give(pages)
        )
        budget.reclaim = self.reclaim
        self.groups = tuple(
            GroupPages(group, slab_bytes, budget, device, self.prefixes.release_oldest)
            for group in groups
        )
        self.place_of_layer = {
            layer: (number, place)
            for number, group in enumerate(groups)
            for place, layer in enumerate(group.layers)
        }

    @property
    def used_bytes(self) -> int:
        """Bytes of pages and scales in use, of all sequences; what several share counts once."""
        in_pages_bytes = sum(pages.used_bytes for pages in self.groups)
        return in_pages_bytes - self.budget.reclaimable_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes taken from the device, used or not."""
        return self.budget.cache_bytes

    @property
    def bytes_by_format(self) -> Mapping[str, int]:
        """Bytes of pages and scales in use or retained, and `free`: held besides.

        Any thread may ask.
        """
        found: Counter[str] = Counter()
        for pages in self.groups:
            for name, num_pages in pages.pages.num_by_format.copy().items():
                found[name] += num_pages * pages.page_bytes(name)
        return {**found, "free": max(0, self.held_bytes - found.total())}

    def has_room(self, num_bytes: int, reserve_bytes: int) -> bool:
        """Whether pages of `num_bytes` fit now, with `reserve_bytes` of workspace besides."""
        is_left = reserve_bytes <= self.budget.left_bytes
        return is_left and num_bytes <= self.room_bytes(reserve_bytes)

    def room_bytes(self, reserve_bytes: int = 0) -> float:
        """What pages could have now, `reserve_bytes` of workspace besides: free ones, and slabs
        that may still be taken."""
        return self._free_bytes + self.budget.room_bytes(reserve_bytes)

    def missing_bytes(self, num_bytes: int) -> int:
        """What pages of `num_bytes` would take from the device besides the free pages held."""
        return max(0, num_bytes - self._free_bytes)

    @property
    def _free_bytes(self) -> int:
        return sum(pages.free_bytes for pages in self.groups)

    @property
    def epoch(self) -> int:
        """Changes whenever pages moved: addresses computed before are void."""
        return sum(pages.pages.epoch + pages.sides.epoch for pages in self.groups)

    @property
    def slab_bytes(self) -> int:
        """Bytes of one slab in every group."""
        return sum(pages.pages.slab_bytes for pages in self.groups)

    def compact(self, max_bytes: int) -> int:
        """Empty slabs whose pages fit elsewhere, moving about `max_bytes`; returns bytes moved."""
        moved_bytes = 0
        for pages in self.groups:
            while moved_bytes < max_bytes and (
                moved := pages.empty_one_slab(max_bytes - moved_bytes)
            ):
                moved_bytes += moved
        return moved_bytes

    def reclaim(self, num_bytes: int) -> None:
        """Give that much back to the device, or all that a prefix is only retained for."""
        goal_bytes = self.held_bytes - num_bytes
        while self.held_bytes > goal_bytes and self.prefixes.release_oldest():
            self.compact(sys.maxsize)

    def check(self) -> None:
        """Raise AssertionError if any page is lost, owned twice or miscounted."""
        self.prefixes.check()
        for pages in self.groups:
            pages.check()
        held = sum(
            pool.num_slabs * pool.slab_bytes
            for pages in self.groups
            for pool in (pages.pages, pages.sides)
        )
        assert held == self.budget.cache_bytes, "slabs and their count differ"


def _numbers(some: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.fromiter(some, np.int64)
