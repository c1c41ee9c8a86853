"""The page table of one sequence, and what its pages are worth.

A step either commits whole or leaves no trace: `reserve` takes pages for the step's tokens, the
forward writes into them, `commit` makes them count; `roll_back` undoes a reservation.

    pages of a group   | sinks, full | packed | packed | full | full: 5 of 16 tokens | reserved |
    positions          0 ................................................ num_stored ^
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adaptive_kv.cache.formats.base import Format, Run
from adaptive_kv.cache.formats.lines import are_rotated
from adaptive_kv.cache.geometry import Keep
from adaptive_kv.cache.page import Page
from adaptive_kv.cache.plan import Reach, make_plan, next_change
from adaptive_kv.cache.prefixes import Names
from adaptive_kv.cache.span import Span
from adaptive_kv.cache.store import GroupPages, PageStore
from adaptive_kv.cache.window import hides_any
from adaptive_kv.policy import CacheMode

_NO_PAGES = np.empty((0, 6), np.int64)


@dataclass(frozen=True, slots=True)
class Past:
    """What a group of layers finds in the cache: runs of pages, and their tokens' positions.

    `positions` is int64 on the store's device, one for every token that the runs have room for.
    Reading the runs one after the other gives these tokens; only at the end of the last page may
    some of them not be stored yet (`SequenceCache.num_kept`).
    """

    runs: tuple[Run, ...]
    positions: Tensor
    stop: int
    """The position after the last one."""


class PageTable:
    """Where a sequence's pages are in a group of layers, for kernels that read through addresses.

    `lines` is int64 `[num_pages, 6]`, in the order of tokens: the page's two addresses
    (`PagePool.addresses`), those of its scales (0 where it has none), bits per element and position
    of its first token. Void after the next change of pages. `mirror` is what a device knows of the
    lines, kept by whoever reads there and handed on as pages are added.
    """

    __slots__ = ("address", "has_rotated", "lines", "mirror")

    def __init__(self, lines: npt.NDArray[np.int64], mirror: object = None) -> None:
        self.lines = lines
        self.mirror = mirror
        self.address: int = lines.ctypes.data
        self.has_rotated = bool(are_rotated(lines).any())
        """Whether some keys were rotated before they were packed."""

    def __len__(self) -> int:
        return len(self.lines)


class SequenceCache:
    """Pages of one sequence in every layer group. Setting `mode` is what starts a switch.

    `tokens` are what it is a cache of, and may grow at their end; without them nothing is shared.
    """

    def __init__(
        self, store: PageStore, mode: CacheMode, tokens: Sequence[int] | None = None
    ) -> None:
        self.store = store
        self.num_stored = 0
        self.num_adopted = 0
        """How many of the stored tokens others have computed."""
        self.is_settled = True
        """Whether every page is as the mode's plan wants it."""
        self.settled_until: float | None = None
        """The length at which a cache that was settled may no longer be; None: never yet."""
        self._mode = mode
        self._tables: list[list[Page]] = [[] for _ in store.groups]
        self.gap_stops = (0,) * len(store.groups)
        """By group: where the tokens end that were dropped after the sinks; 0 for none."""
        self._has_lost_tokens = False
        self._pasts: dict[int, Past] = {}
        self._page_tables: dict[int, PageTable] = {}
        self._epoch = -1
        self._is_exact: bool | None = None
        self._used_bytes: int | None = None
        self._borrowed_bytes = 0
        self._may_borrow = False
        self._names: Names | None = None
        self._num_named = 0
        self._named_at: float = math.inf
        if tokens is not None and store.shares_prefixes:
            self._names = Names(tokens, store.keep)
            self._expect_block(0)

    @property
    def mode(self) -> CacheMode:
        """How this cache should be kept; pages follow a bounded amount per step."""
        return self._mode

    @mode.setter
    def mode(self, mode: CacheMode) -> None:
        self._mode = mode
        self.is_settled = False
        self.settled_until = None
        if mode.is_disabled:
            self.drop()

    @property
    def is_exact(self) -> bool:
        """Whether everything a next token would attend to is as a fresh full run would have it."""
        if self._is_exact is None:
            pages = itertools.chain.from_iterable(self._tables)
            self._is_exact = not self._has_lost_tokens and all(page.is_exact for page in pages)
        return self._is_exact

    def is_exact_up_to(self, stop: int) -> bool:
        """Whether new tokens before `stop` see everything as a fresh full run would."""
        window = self._mode.window
        return self.is_exact and not (window and hides_any(window, stop, self.store.keep.sinks))

    @property
    def used_bytes(self) -> int:
        """Bytes of this sequence's pages, scales included, but for those that it borrows."""
        if self._used_bytes is None:
            self._used_bytes = self._weigh()
        return self._used_bytes

    @property
    def borrowed_bytes(self) -> int:
        """Bytes of pages that it shares and that count with somebody else."""
        _ = self.used_bytes  # both are found together
        return self._borrowed_bytes

    def pages(self, group: int) -> tuple[Page, ...]:
        """The pages of a layer group in the order of their tokens."""
        return tuple(self._tables[group])

    def plan(self, group: int) -> list[Span]:
        """What its mode wants of the stored tokens in a layer group."""
        return make_plan(*self._plan_terms(group))

    def settle(self) -> None:
        """Every page is as the plans want it now."""
        self.is_settled = True
        groups = range(len(self._tables))
        self.settled_until = min(next_change(*self._plan_terms(group)) for group in groups)

    def reserve(self, num_new: int) -> None:
        """Have full pages for the next `num_new` tokens in every group.

        Raises `torch.OutOfMemoryError`; what was reserved before stays, nothing new is kept.
        """
        taken: list[tuple[GroupPages, list[Page], Page]] = []
        try:
            for pages, table in zip(self.store.groups, self._tables, strict=True):
                while self._room_end(pages, table) < self.num_stored + num_new:
                    start = self._room_end(pages, table)
                    page = pages.take("full", start)
                    table.append(page)
                    taken.append((pages, table, page))
        except torch.OutOfMemoryError:
            for pages, table, page in reversed(taken):
                table.remove(page)
                pages.give([page])
            raise
        if taken:
            self._pasts.clear()  # page tables go on where they stopped
            if self._used_bytes is not None:
                self._used_bytes += sum(pages.page_bytes("full") for pages, *_ in taken)

    def commit(self, num_new: int, *, is_exact: bool) -> None:
        """Count `num_new` written tokens in; `is_exact` tells whether they saw an exact past."""
        if not is_exact:
            self._is_exact = False
        for pages, table in zip(self.store.groups, self._tables, strict=True):
            size = pages.full.tokens_per_page
            for page in reversed(table):
                if page.stop == page.start + size or page.format != "full":
                    break
                if page.num_tokens == 0:
                    self._pasts.clear()
                page.num_tokens = max(0, min(size, self.num_stored + num_new - page.start))
                page.is_exact &= is_exact
        self.num_stored += num_new
        if self.num_stored >= self._named_at:
            self._enter_blocks()
        if self.settled_until is None or self.num_stored >= self.settled_until:
            self.is_settled = False

    def roll_back(self) -> None:
        """Give back the pages of a step that did not happen."""
        for pages, table in zip(self.store.groups, self._tables, strict=True):
            unused = [page for page in table if page.num_tokens == 0]
            if unused:
                table[:] = [page for page in table if page.num_tokens]
                pages.give(unused)
        self._changed()

    def drop(self) -> None:
        """Give back every page; the token ids of the sequence are the truth."""
        for group, table in enumerate(self._tables):
            dropped, table[:] = list(table), []
            self._give(group, dropped)
        self.num_stored = self.num_adopted = 0
        self._may_borrow = False
        self._expect_block(0)
        self.gap_stops = (0,) * len(self._tables)
        self._has_lost_tokens = False
        self.is_settled = True
        self.settled_until = None
        self._changed()

    def retire(self) -> None:
        """As `drop`, but whole blocks that others may begin with are retained."""
        if self._names is not None and self.is_exact:
            everything = itertools.chain.from_iterable(self._tables)
            retained = self.store.prefixes.retain(self, everything)
            for table in self._tables:
                table[:] = [page for page in table if page.block not in retained]
        self.drop()

    def adopt(self) -> None:
        """Go on with what others have of the same tokens, where what is stored ends with a block.

        At least one token is left to be computed.
        """
        names, first = self._names, self._num_named
        is_at_end = names is not None and self.num_stored == names.stop(first - 1)
        if names is None or not is_at_end or self._mode.is_disabled:
            return
        last, blocks_by_group = self.store.prefixes.find(names, first)
        if last == first:
            return
        stop, self._may_borrow = names.stop(last - 1), True
        for group, blocks in enumerate(blocks_by_group):
            begin = blocks[0].start if blocks else stop
            if begin > self.num_stored:  # the model hides what is before
                gaps = self.gap_stops
                self.gap_stops = (*gaps[:group], begin, *gaps[group + 1 :])
            for block in blocks:
                self.store.prefixes.share(block, self)
                self._tables[group] += block.pages
        self.num_adopted += stop - self.num_stored
        self.num_stored = stop
        self.is_settled = False
        self._expect_block(last)
        self._changed()

    def num_shared(self, mode: CacheMode) -> int:
        """As `Prefixes.num_shared`, while it has stored nothing."""
        return 0 if self._names is None else self.store.prefixes.num_shared(self._names, mode)

    def put(self, group: int, old: Sequence[Page], new: Sequence[Page]) -> None:
        """Have `new` pages where the adjacent `old` ones are; neither are given back or taken."""
        table = self._tables[group]
        first = table.index(old[0])
        table[first : first + len(old)] = new
        self._changed()

    def replace(self, group: int, old: Sequence[Page], new: Sequence[Page]) -> None:
        """Put `new` pages where the adjacent `old` ones are, and give the old ones back.

        Whoever shares them gets the new ones, too.
        """
        for holder in self.store.prefixes.replace(old, new) or [self]:
            holder.put(group, old, new)
        self.store.groups[group].give(old)

    def reconsider(self) -> None:
        """Somebody has left pages that this one shares: what was wanted of them may be done now."""
        self.is_settled = False
        self._used_bytes = None

    def forget(self, group: int, span: Span) -> None:
        """Drop the pages of a span that the plan drops, and remember the gap."""
        table = self._tables[group]
        dropped = [page for page in table if span.start <= page.start < span.stop]
        if not dropped:
            return
        table[:] = [page for page in table if not span.start <= page.start < span.stop]
        self._give(group, dropped)
        gap_stop = max(self.gap_stops[group], span.stop)
        self.gap_stops = (*self.gap_stops[:group], gap_stop, *self.gap_stops[group + 1 :])
        self._has_lost_tokens |= not self._hidden_by_model(group, dropped)
        self._changed()

    def page_table(self, group: int) -> PageTable:
        """Where the pages of a group of layers are, those that are reserved included."""
        self._forget_moved()
        table = self._page_tables.get(group)
        known = _NO_PAGES if table is None else table.lines
        new = self._tables[group][len(known) :]
        if table is None or new:
            lines = self.store.groups[group].lines(new)
            mirror = None if table is None else table.mirror
            table = self._page_tables[group] = PageTable(np.concatenate([known, lines]), mirror)
        return table

    def num_kept(self, group: int) -> int:
        """How many stored tokens a group of layers still has in pages."""
        past = self.past(group)
        return len(past.positions) - (past.stop - self.num_stored) if past.runs else 0

    def past(self, group: int) -> Past:
        """What the group's layers find; computed once per change of pages."""
        self._forget_moved()
        past = self._pasts.get(group)
        if past is None:
            past = self._pasts[group] = self._make_past(group)
        return past

    def places(self, group: int, num_new: int) -> list[tuple[int, int, int]]:
        """Where the next `num_new` tokens go: (slab number, page index, token in page) each."""
        pages = self.store.groups[group]
        size, pool = pages.full.tokens_per_page, pages.pages
        last = self.num_stored + num_new
        found = []
        for page in reversed(self._tables[group]):
            if page.start + size <= self.num_stored:
                break
            number, index = divmod(page.id, pool.pages_per_slab)
            tokens = range(max(page.start, self.num_stored), min(page.start + size, last))
            found.append([(number, index, position - page.start) for position in tokens])
        return list(itertools.chain.from_iterable(reversed(found)))

    def _weigh(self) -> int:
        """Bytes of its own pages; notes those of borrowed ones."""
        all_bytes = self._borrowed_bytes = 0
        for pages, table in zip(self.store.groups, self._tables, strict=True):
            all_bytes += _weight(pages, table)
            if self._may_borrow:
                self._borrowed_bytes += _weight(pages, filter(self._is_borrowed, table))
        return all_bytes - self._borrowed_bytes

    def _is_borrowed(self, page: Page) -> bool:
        """Whether a page counts with somebody else."""
        return page.block is not None and page.block.holders[0] is not self

    def _give(self, group: int, pages: Sequence[Page]) -> None:
        """Leave pages to those who share them, and give the others back."""
        self.store.groups[group].give(self.store.prefixes.leave(self, pages))

    def _enter_blocks(self) -> None:
        """Let others find the blocks that have become whole, or share theirs if they have them."""
        names, prefixes = self._names, self.store.prefixes
        assert names is not None
        for number in range(self._num_named, names.num_whole(self.num_stored)):
            for group, table in enumerate(self._tables):
                pages = list(_tail(table, names.stop(number - 1), names.stop(number)))
                if not pages or not all(p.is_exact and p.format == "full" for p in pages):
                    continue
                known = prefixes.enter(group, names[number], pages, self)
                if known is not None:
                    prefixes.share(known, self)
                    self._may_borrow = True
                    self.put(group, pages, known.pages)
                    self.store.groups[group].give(pages)
            self._expect_block(number + 1)

    def _expect_block(self, number: int) -> None:
        """The next block that becomes whole is this one."""
        self._num_named = number
        if self._names is not None:
            self._named_at = self._names.stop(number)

    def _plan_terms(self, group: int) -> tuple[CacheMode, int, Keep, dict[str, Format], Reach]:
        pages = self.store.groups[group]
        reach = Reach(pages.group.window, self.gap_stops[group])
        return self._mode, self.num_stored, self.store.keep, pages.formats, reach

    def _make_past(self, group: int) -> Past:
        pages = self.store.groups[group]
        table = [page for page in self._tables[group] if page.num_tokens]
        grouped = itertools.groupby(table, key=lambda page: _where(pages, page))
        runs = tuple(make_run(pages, list(same)) for _, same in grouped)
        sizes = [pages.formats[page.format].tokens_per_page for page in table]
        spans = [range(p.start, p.start + size) for p, size in zip(table, sizes, strict=True)]
        positions = torch.tensor(
            list(itertools.chain.from_iterable(spans)), dtype=torch.int64, device=self.store.device
        )
        return Past(runs, positions, spans[-1].stop if spans else 0)

    def _forget_moved(self) -> None:
        """Pages of any sequence may have moved since: addresses are void then."""
        if self._epoch != self.store.epoch:
            self._pasts.clear()
            self._page_tables.clear()
            self._epoch = self.store.epoch

    def _room_end(self, pages: GroupPages, table: list[Page]) -> int:
        """The position after the last token that the pages of a group have room for."""
        if not table:
            return self.num_stored
        last = table[-1]
        return last.start + pages.formats[last.format].tokens_per_page

    def _hidden_by_model(self, group: int, dropped: list[Page]) -> bool:
        own = self.store.groups[group].group.window
        return own is not None and all(p.stop <= self.num_stored - own + 1 for p in dropped)

    def _changed(self) -> None:
        self._page_tables.clear()
        self._pasts.clear()
        self._is_exact = self._used_bytes = None


def _weight(pages: GroupPages, some: Iterable[Page]) -> int:
    """Bytes of some pages of a group."""
    by_format = Counter(page.format for page in some)
    return sum(pages.page_bytes(name) * num_pages for name, num_pages in by_format.items())


def _tail(table: list[Page], start: int, stop: int) -> Iterable[Page]:
    """The pages of tokens `[start, stop)`, which are not far from the end."""
    inside = itertools.takewhile(lambda page: page.start >= start, reversed(table))
    return reversed([page for page in inside if page.start < stop])


def make_run(pages: GroupPages, run: list[Page]) -> Run:
    """A run of pages that share their format, their slab and the slab of their scales."""
    device = pages.pages.device
    slab, _ = pages.pages.slab_and_index(run[0])
    index = torch.tensor([page.id % pages.pages.pages_per_slab for page in run], device=device)
    if run[0].side is None:
        return Run(run[0].format, slab, index)
    side, _ = pages.sides.slab_and_index(run[0].side)
    places = [page.side.id % pages.sides.pages_per_slab for page in run if page.side is not None]
    return Run(run[0].format, slab, index, side, torch.tensor(places, device=device))


def _where(pages: GroupPages, page: Page) -> tuple[str, int, int]:
    side = pages.sides.slab_number(page.side) if page.side is not None else -1
    return page.format, pages.pages.slab_number(page), side
