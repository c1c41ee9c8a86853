"""A switch goes block by block, may stop and turn back anywhere, and knows what it has lost."""

import pytest
import torch
from driver import make_store
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_kv.cache import switch
from adaptive_kv.cache.geometry import Keep, LayerGroup
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache, make_run
from adaptive_kv.policy import CacheMode

_GROUP = LayerGroup((0, 1), 2, 32, 32, torch.bfloat16)


def _filled(num_tokens: int, *groups: LayerGroup, keep: Keep | None = None) -> SequenceCache:
    """A full cache of random keys and values."""
    store = make_store(groups or [_GROUP], keep)
    cache = SequenceCache(store, CacheMode("full"))
    cache.reserve(num_tokens)
    cache.commit(num_tokens, is_exact=True)
    generator = torch.Generator().manual_seed(0)
    for number, pages in enumerate(store.groups):
        for page in cache.pages(number):
            slab, index = pages.pages.slab_and_index(page)
            for pieces in (slab.keys, slab.values):
                rows = pieces[:, :, index].view(pages.group.dtype)
                rows.copy_(torch.randn(rows.shape, generator=generator))
    return cache


def _contents(cache: SequenceCache) -> torch.Tensor:
    """Keys and values of the first group, by token."""
    pages = cache.store.groups[0]
    parts = []
    for page in cache.pages(0):
        keys, values = pages.formats[page.format].read(make_run(pages, [page]), slice(None))
        parts.append(torch.cat([keys, values], -1)[:, :, : page.num_tokens])
    return torch.cat(parts, 2).float()


def _turn(cache: SequenceCache, mode: str, max_bytes: int | None = None) -> None:
    cache.mode = CacheMode(mode)
    while not cache.is_settled:
        switch.advance(cache, max_bytes)


def test_one_call_moves_about_what_it_is_allowed_and_says_what_it_freed() -> None:
    cache = _filled(600)
    cache.mode = CacheMode("int4")
    used_bytes, num_calls = cache.used_bytes, 0
    while not cache.is_settled:
        before_bytes = cache.used_bytes
        progress = switch.advance(cache, max_bytes=1)
        assert progress.moved_bytes <= 5 * _GROUP.page_bytes  # four full pages into one
        assert progress.freed_bytes == before_bytes - cache.used_bytes
        num_calls += 1
    assert num_calls > 8
    assert cache.used_bytes < 0.5 * used_bytes
    assert switch.advance(cache) == switch.Progress(0, 0)


@given(turns=st.lists(st.sampled_from(["full", "int8", "int4"]), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_contents_stay_near_through_any_turns_even_when_broken_off(turns: list[str]) -> None:
    cache = _filled(500)
    before = _contents(cache)
    for mode in turns:
        cache.mode = CacheMode(mode)
        switch.advance(cache, 40_000)  # about half of the work
        cache.store.check()
    after = _contents(cache)
    assert after.shape == before.shape
    # Random numbers span about 7; a turn through int4 costs at most half of a fifteenth of that.
    assert (after - before).abs().max() <= (1.2 if "int4" in turns else 0.1)
    assert torch.equal(after[:, :, :16], before[:, :, :16])  # sinks are never packed
    assert torch.equal(after[:, :, -32:], before[:, :, -32:])  # nor the newest


def test_going_back_to_full_keeps_the_loss_and_says_so() -> None:
    cache = _filled(300)
    before = _contents(cache)
    _turn(cache, "int8")
    lossy = _contents(cache)
    _turn(cache, "full")
    assert torch.equal(_contents(cache), lossy)
    assert not torch.equal(lossy, before)
    flags = {page.start >= 16 and page.stop <= 240: page.is_exact for page in cache.pages(0)}
    assert flags == {True: False, False: True}
    assert not cache.is_exact


def test_turning_back_before_anything_was_lost_stays_exact() -> None:
    cache = _filled(300)
    cache.mode = CacheMode("window:64+int4")
    _turn(cache, "full")
    assert cache.is_exact


def test_dropping_what_the_model_cannot_see_loses_nothing() -> None:
    sliding = LayerGroup((1,), 1, 16, 16, torch.bfloat16, window=64)
    cache = _filled(400, LayerGroup((0,), 1, 16, 16, torch.bfloat16), sliding)
    _turn(cache, "full")
    assert cache.gap_stops == (0, 336)
    assert [page.start for page in cache.pages(1)] == [336, 352, 368, 384]
    assert cache.is_exact


def test_what_a_window_dropped_does_not_come_back() -> None:
    cache = _filled(400)
    _turn(cache, "window:64")
    _turn(cache, "full")
    assert not cache.is_exact
    assert cache.past(0).positions.tolist() == [*range(16), *range(336, 400)]


def _room_for_nothing(store: PageStore) -> None:
    store.budget.limit_bytes = store.budget.used_bytes


def test_growing_beyond_the_limit_stops_where_it_is_and_goes_on_later() -> None:
    cache = _filled(1500)
    _turn(cache, "int4")
    cache.store.compact(1 << 30)
    _room_for_nothing(cache.store)
    before = _contents(cache)
    cache.mode = CacheMode("full")
    with pytest.raises(torch.OutOfMemoryError):
        switch.advance(cache)
    cache.store.check()
    assert not cache.is_settled
    assert torch.equal(_contents(cache), before)
    formats = {page.format for page in cache.pages(0)}
    assert formats == {"full", "int8", "int4"}  # too little for int4 is in int8
    cache.store.budget.limit_bytes = None
    _turn(cache, "full")
    assert torch.equal(_contents(cache), before)
    assert {page.format for page in cache.pages(0)} == {"full"}


def test_a_tainted_token_taints_its_page_and_no_other() -> None:
    cache = _filled(40)
    cache.reserve(30)
    cache.commit(30, is_exact=False)
    assert [page.is_exact for page in cache.pages(0)] == [True, True, False, False, False]
    assert not cache.is_exact


def test_disabling_gives_every_page_back_at_once() -> None:
    cache = _filled(400)
    cache.mode = CacheMode("disabled")
    assert (cache.used_bytes, cache.num_stored, cache.store.held_bytes) == (0, 0, 0)
    assert cache.is_settled
    assert cache.is_exact
