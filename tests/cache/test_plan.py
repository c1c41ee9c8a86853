"""A plan covers every token once, page by page, and its bytes are what a settled cache weighs."""

import pytest
import torch
from driver import make_store
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plans import dtypes, keeps, lengths, modes, own_windows

from adaptive_kv.cache import switch
from adaptive_kv.cache.costs import page_bytes
from adaptive_kv.cache.formats import make_formats
from adaptive_kv.cache.geometry import BLOCK_TOKENS, Keep, LayerGroup
from adaptive_kv.cache.plan import Reach, make_plan, next_change
from adaptive_kv.cache.span import Span
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.policy import CacheMode


def _group(dtype: torch.dtype, window: int | None = None) -> LayerGroup:
    return LayerGroup((0,), 1, 16, 16, dtype, window)


@given(mode=modes, num_tokens=lengths, keep=keeps, dtype=dtypes, own_window=own_windows)
@settings(max_examples=400, deadline=None)
@example(CacheMode("window:1+int4"), 65, Keep(0, 0), torch.bfloat16, 1)
def test_spans_cover_all_tokens_in_order_and_packed_ones_hold_whole_pages(
    mode: CacheMode, num_tokens: int, keep: Keep, dtype: torch.dtype, own_window: int | None
) -> None:
    formats = make_formats(_group(dtype))
    spans = make_plan(mode, num_tokens, keep, formats, Reach(own_window))
    position = 0
    for span in spans:
        assert span.start == position
        assert span.stop >= span.start
        position = span.stop
        if span.format is not None and span.start < span.stop:
            size = formats[span.format].tokens_per_page
            assert span.start % formats["full"].tokens_per_page == 0
            assert span.format == "full" or (span.stop - span.start) % size == 0
            assert span.format == "full" or (span.start - keep.sinks) % size == 0
    assert position == num_tokens


@given(mode=modes, num_tokens=lengths, keep=keeps, own_window=own_windows)
@settings(max_examples=300, deadline=None)
def test_nothing_is_dropped_that_a_later_token_sees_nor_packed_that_is_recent(
    mode: CacheMode, num_tokens: int, keep: Keep, own_window: int | None
) -> None:
    formats = make_formats(_group(torch.bfloat16))
    for span in make_plan(mode, num_tokens, keep, formats, Reach(own_window)):
        for position in range(span.start, span.stop):
            distance = num_tokens - position
            in_model = own_window is None or distance < own_window
            in_mode = mode.window is None or distance < mode.window or position < keep.sinks
            if span.format is None and not mode.is_disabled:
                assert not (in_model and in_mode)
            if span.format in {"int8", "int4"}:
                assert keep.sinks <= position < num_tokens - keep.recent


@given(num_tokens=lengths, keep=keeps, window=st.one_of(st.none(), st.integers(1, 400)))
@settings(max_examples=300, deadline=None)
def test_a_denser_mode_never_weighs_more_in_16_bits(
    num_tokens: int, keep: Keep, window: int | None
) -> None:
    # Scales are an eighth of a page for heads of 64; tinier heads gain nothing by int8 alone.
    group = LayerGroup((0,), 1, 64, 64, torch.bfloat16)
    prefix = "" if window is None else f"window:{window}+"
    names = ["full" if window is None else f"window:{window}", f"{prefix}int8", f"{prefix}int4"]
    weights = [page_bytes(CacheMode(name), num_tokens, group, keep) for name in names]
    assert weights[0] >= weights[1] >= weights[2]


def test_a_disabled_cache_weighs_nothing() -> None:
    assert page_bytes(CacheMode("disabled"), 1000, _group(torch.bfloat16), Keep()) == 0


def test_the_four_spans_of_a_packed_window() -> None:
    formats = make_formats(_group(torch.bfloat16))
    plan = make_plan(CacheMode("window:500+int4"), 1000, Keep(16, 100), formats, Reach())
    assert plan == [
        Span(0, 16, "full"),
        Span(16, 464, None),  # seven blocks of 64; the next token sees 501 and later
        Span(464, 848, "int4"),
        Span(848, 880, "int8"),  # too little for a page of int4
        Span(880, 1000, "full"),
    ]


def test_sinks_are_kept_in_whole_pages() -> None:
    assert [Keep(sinks=sinks).sinks for sinks in (0, 1, 4, 16, 17)] == [0, 16, 16, 16, 32]


def _settle(cache: SequenceCache, max_bytes: int | None) -> None:
    for _ in range(2000):
        if cache.is_settled:
            return
        switch.advance(cache, max_bytes)
        cache.store.check()
    raise AssertionError("it never settles")


def _wanted_bytes(store: PageStore, cache: SequenceCache) -> int:
    return sum(
        page_bytes(cache.mode, cache.num_stored, pages.group, store.keep, gap_stop)
        for pages, gap_stop in zip(store.groups, cache.gap_stops, strict=True)
    )


@given(
    data=st.data(),
    keep=keeps,
    dtype=dtypes,
    own_window=own_windows,
    max_bytes=st.sampled_from([None, 1, 20000]),
)
@settings(max_examples=150, deadline=None)
def test_costs_are_what_a_settled_cache_weighs_whatever_it_went_through(
    data: st.DataObject, keep: Keep, dtype: torch.dtype, own_window: int | None, max_bytes: int
) -> None:
    groups = [_group(dtype), LayerGroup((1,), 1, 8, 24, dtype, own_window)]
    store = make_store(groups, keep)
    cache = SequenceCache(store, CacheMode("full"))
    for _ in range(data.draw(st.integers(1, 8), label="rounds")):
        cache.mode = data.draw(modes, label="mode")
        if not cache.mode.is_disabled:
            for num_new in data.draw(st.lists(st.integers(1, 150), max_size=4), label="appends"):
                cache.reserve(num_new)
                cache.commit(num_new, is_exact=True)
                if data.draw(st.booleans(), label="advance once"):
                    switch.advance(cache, max_bytes)
                store.check()
        if data.draw(st.booleans(), label="settle"):
            _settle(cache, max_bytes)
            assert cache.used_bytes == store.used_bytes == _wanted_bytes(store, cache)
    _settle(cache, max_bytes)
    assert cache.used_bytes == store.used_bytes == _wanted_bytes(store, cache)
    _check_tokens(store, cache)


def _check_tokens(store: PageStore, cache: SequenceCache) -> None:
    """Every stored token that the plan keeps is in exactly one page of the planned format."""
    for number in range(len(store.groups)):
        wanted = {
            position: span.format
            for span in cache.plan(number)
            if span.format is not None
            for position in range(span.start, span.stop)
        }
        found = [
            (position, page.format)
            for page in cache.pages(number)
            for position in range(page.start, page.stop)
        ]
        assert sorted(wanted.items()) == found
        positions = cache.past(number).positions[: cache.num_kept(number)]
        assert positions.tolist() == sorted(wanted)


@given(mode=modes, num_tokens=lengths, keep=keeps, dtype=dtypes, own_window=own_windows)
@settings(max_examples=300, deadline=None)
def test_nothing_more_is_packed_or_dropped_before_the_next_change(
    mode: CacheMode, num_tokens: int, keep: Keep, dtype: torch.dtype, own_window: int | None
) -> None:
    formats, reach = make_formats(_group(dtype)), Reach(own_window)

    def wanted(length: int) -> list[Span]:
        plan = make_plan(mode, length, keep, formats, reach)
        return [s for s in plan if s.format != "full" and s.start < s.stop]

    if mode.is_disabled:
        return
    change = next_change(mode, num_tokens, keep, formats, reach)
    assert change > num_tokens
    for length in range(num_tokens, int(min(change, num_tokens + 70))):
        assert wanted(length) == wanted(num_tokens)


@pytest.mark.parametrize("recent", [0, 5, 100])
def test_growing_token_by_token_is_settled_by_every_advance(recent: int) -> None:
    store = make_store([_group(torch.bfloat16)], Keep(16, recent))
    cache = SequenceCache(store, CacheMode("int4"))
    for _ in range(300):
        cache.reserve(1)
        cache.commit(1, is_exact=True)
        switch.advance(cache)
        assert cache.used_bytes == _wanted_bytes(store, cache)
    _check_tokens(store, cache)


def test_a_refused_reservation_leaves_what_was_there() -> None:
    store = make_store([_group(torch.bfloat16), LayerGroup((1,), 1, 16, 16, torch.bfloat16, 8)])
    cache = SequenceCache(store, CacheMode("full"))
    cache.reserve(100)
    cache.commit(100, is_exact=True)
    store.budget.limit_bytes = store.budget.used_bytes
    used_bytes, places = store.used_bytes, cache.pages(0)
    with pytest.raises(torch.OutOfMemoryError):
        cache.reserve(100_000)
    store.check()
    assert (store.used_bytes, cache.pages(0), cache.num_stored) == (used_bytes, places, 100)


def test_blocks_are_the_tokens_of_the_densest_page() -> None:
    formats = make_formats(_group(torch.bfloat16))
    assert max(used.tokens_per_page for used in formats.values()) == BLOCK_TOKENS
