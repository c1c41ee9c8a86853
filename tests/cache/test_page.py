"""Pages are never lost, never owned twice, and keep their contents wherever they are moved."""

import pytest
import torch
from driver import CPU, make_store
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adaptive_kv.cache.geometry import LayerGroup, PageShape
from adaptive_kv.cache.page import Page, PagePool
from adaptive_kv.cache.slab import Budget

_GROUPS = (
    LayerGroup((0, 2), 1, 16, 16, torch.float32),
    LayerGroup((1,), 2, 8, 24, torch.float32, window=64),
)
_SLAB_BYTES = 5 * 4096
_LIMIT_BYTES = 20 * _SLAB_BYTES

formats = st.sampled_from(["full", "int8", "int4"])


class Pages(RuleBasedStateMachine):
    """Takes, gives and moves pages under a budget; every page carries a mark of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(limit_bytes=_LIMIT_BYTES)
        self.store = make_store(_GROUPS, slab_bytes=_SLAB_BYTES, budget=self.budget)
        self.held: list[tuple[int, Page, int]] = []
        self.next_mark = 0

    def _marks(self, group: int, page: Page) -> list[torch.Tensor]:
        """All bytes of a page and of its scales."""
        pages = self.store.groups[group]
        slab, index = pages.pages.slab_and_index(page)
        found = [slab.keys[:, :, index], slab.values[:, :, index]]
        if page.side is not None:
            side, index = pages.sides.slab_and_index(page.side)
            found += [side.keys[:, :, index], side.values[:, :, index]]
        return found

    @rule(group=st.integers(0, 1), name=formats, spare=st.booleans(), num=st.integers(1, 12))
    def take(self, group: int, name: str, num: int, *, spare: bool) -> None:
        for _ in range(num):
            before = self.store.used_bytes, self.store.held_bytes
            has_spare = self.store.groups[group].pages.num_free > 0
            try:
                page = self.store.groups[group].take(name, 0, may_use_spare=spare)
            except torch.OutOfMemoryError:
                # Slabs emptied on the way may be gone; none was taken, unless for a lost spare.
                assert self.store.used_bytes == before[0]
                assert self.store.held_bytes <= before[1] or not has_spare
                return
            self.next_mark = self.next_mark % 250 + 1
            for marks in self._marks(group, page):
                marks.fill_(self.next_mark)
            self.held.append((group, page, self.next_mark))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, len(self.held) - 1))
        given = self.held[first : first + data.draw(st.integers(1, 12))]
        del self.held[first : first + len(given)]
        for number, pages in enumerate(self.store.groups):
            pages.give([page for group, page, _ in given if group == number])

    @rule(max_bytes=st.sampled_from([1, 4096, 1 << 30]))
    def compact(self, max_bytes: int) -> None:
        used, held, epoch = self.store.used_bytes, self.store.held_bytes, self.store.epoch
        moved_bytes = self.store.compact(max_bytes)
        assert self.store.used_bytes == used
        assert self.store.held_bytes <= held
        assert self.store.epoch > epoch or moved_bytes == 0

    @rule(num_slabs=st.one_of(st.none(), st.integers(0, 3)))
    def allow(self, num_slabs: int | None) -> None:
        self.budget.allowance_bytes = None if num_slabs is None else num_slabs * _SLAB_BYTES

    @invariant()
    def every_page_is_somewhere_and_only_there(self) -> None:
        self.store.check()
        assert self.store.held_bytes <= _LIMIT_BYTES
        weights = sum(
            self.store.groups[group].page_bytes(page.format) for group, page, _ in self.held
        )
        assert self.store.used_bytes == weights <= self.store.held_bytes

    @invariant()
    def contents_follow_their_page(self) -> None:
        for group, page, mark in self.held:
            assert all((marks == mark).all() for marks in self._marks(group, page))

    @invariant()
    def nothing_is_held_for_nobody(self) -> None:
        if not self.held:
            assert self.store.held_bytes == 0


Pages.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPages = Pages.TestCase


def _pool(budget: Budget) -> PagePool:
    return PagePool(PageShape(1, 2, 8, 24), 4 * 64, budget, CPU)


def test_the_last_free_page_is_kept_for_switches() -> None:
    pool = _pool(Budget(limit_bytes=4 * 64))
    for _ in range(3):
        pool.take("full", 0)
    with pytest.raises(torch.OutOfMemoryError, match="a slab needs 256 bytes, 0 are left"):
        pool.take("full", 0)
    pool.take("int4", 0, may_use_spare=True)
    assert (pool.num_live, pool.num_free) == (4, 0)


def test_pages_are_handed_out_lowest_first_so_that_high_slabs_run_empty() -> None:
    pool = _pool(Budget())
    taken = [pool.take("full", 0) for _ in range(8)]
    pool.give([taken[1], taken[6]])
    assert [pool.take("full", 0).id for _ in range(2)] == [1, 6]


def test_an_empty_slab_is_given_back_though_it_is_not_the_last() -> None:
    budget = Budget()
    pool = _pool(budget)
    taken = [pool.take("full", 0) for _ in range(9)]
    pool.give(taken[4:8])
    pool.trim()
    assert (pool.num_slabs, budget.cache_bytes) == (2, 2 * 4 * 64)
    assert taken[8].id == 8
    assert pool.take("full", 0).id == 9


def test_a_slab_that_the_device_refuses_leaves_no_trace() -> None:
    budget = Budget()
    pool = PagePool(PageShape(1, 1, 1 << 59, 1 << 59), 1 << 62, budget, CPU)
    with pytest.raises(torch.OutOfMemoryError):
        pool.take("full", 0)
    pool.check()
    assert (pool.num_slabs, pool.num_live, budget.cache_bytes) == (0, 0, 0)


def test_the_floor_lets_slabs_take_what_is_above_it_and_no_more() -> None:
    budget = Budget()
    budget.allowance_bytes = 2 * 256 + 255
    pool = _pool(budget)
    for _ in range(7):
        pool.take("full", 0)
    with pytest.raises(torch.OutOfMemoryError, match="a slab above the floor"):
        pool.take("full", 0)
    assert (pool.num_slabs, budget.cache_bytes, budget.allowance_bytes) == (2, 512, 255)


def test_workspace_counts_against_the_limit_while_a_step_runs() -> None:
    budget = Budget(limit_bytes=1000, weights_bytes=300)
    with budget.workspace(500):
        assert budget.used_bytes == 800
        with pytest.raises(torch.OutOfMemoryError):
            budget.take_slab(256)
    budget.take_slab(256)
    with pytest.raises(torch.OutOfMemoryError, match="workspace"), budget.workspace(500):
        pass
    assert (budget.used_bytes, budget.workspace_bytes, budget.peak_cache_bytes) == (556, 0, 256)


def test_emptying_a_slab_moves_as_few_pages_as_possible() -> None:
    pool = _pool(Budget())
    taken = [pool.take("full", 0) for _ in range(11)]
    pool.give([*taken[4:7], taken[1], taken[8]])
    assert pool.empty_one_slab() == 64  # one page lived in the second slab
    assert pool.num_slabs == 2
    pool.check()


def test_a_slab_may_be_emptied_a_few_pages_at_a_time() -> None:
    pool = _pool(Budget())
    taken = [pool.take("full", 0) for _ in range(11)]
    pool.give([taken[0], *taken[3:5], taken[10]])
    moved_bytes = [pool.empty_one_slab(max_pages=1) for _ in range(3)]
    assert moved_bytes == [64, 64, 0]
    assert (pool.num_slabs, sorted(page.id for page in taken[8:10])) == (2, [0, 3])
    pool.check()


def test_places_of_a_slab_that_is_being_emptied_may_be_taken_again() -> None:
    pool = _pool(Budget())
    taken = [pool.take("full", 0) for _ in range(11)]
    pool.give([taken[0], *taken[3:5], taken[10]])
    pool.empty_one_slab(max_pages=1)
    more = [pool.take("full", 0) for _ in range(4)]
    pool.check()
    assert {page.id for page in more} == {3, 4, 8, 10}
    assert taken[8].id == 0


def test_a_full_page_asks_for_no_more_scales_than_there_are_full_pages() -> None:
    """Packed ones have theirs: at the floor, free pages can be used to the last."""
    budget = Budget()
    store = make_store(_GROUPS[:1], slab_bytes=16 * 4096, budget=budget)
    (pages,) = store.groups
    for name in ("full", "int8", "int4"):
        pages.take(name, 0)
    budget.allow(0)
    num_free = pages.pages.num_free
    for _ in range(num_free - 1):  # one is the spare
        pages.take("full", 0)
    with pytest.raises(torch.OutOfMemoryError):
        pages.take("full", 0)
    store.check()


def test_below_the_floor_scales_are_taken_only_in_exchange_for_more_that_was_given() -> None:
    budget = Budget()
    for _ in range(4):
        budget.take_slab(100)
    budget.allow(-50)
    with pytest.raises(torch.OutOfMemoryError, match="above the floor"):
        budget.take_slab(60, is_exchange=True)
    budget.give_slab(100)
    with pytest.raises(torch.OutOfMemoryError, match="above the floor"):
        budget.take_slab(60)
    budget.take_slab(60, is_exchange=True)
    with pytest.raises(torch.OutOfMemoryError, match="above the floor"):
        budget.take_slab(60, is_exchange=True)  # 40 are left of it
    budget.give_slab(100)
    budget.allow(-50)
    with pytest.raises(torch.OutOfMemoryError, match="above the floor"):
        budget.take_slab(60, is_exchange=True)  # what was given before is in the new reading
