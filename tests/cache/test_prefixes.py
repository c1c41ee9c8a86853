"""Blocks are found by all tokens up to their end, counted once, and never weigh more than told."""

import pytest
import torch
from driver import make_store
from engines import check_holders, pages_of
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_kv.cache import costs, switch
from adaptive_kv.cache.geometry import Keep, LayerGroup
from adaptive_kv.cache.prefixes import Names
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.policy import CacheMode

_GROUP = LayerGroup((0, 2), 2, 16, 16, torch.bfloat16)
_SLIDING = LayerGroup((1,), 1, 16, 16, torch.bfloat16, window=100)
_MODES = ("full", "int8", "int4", "window:64", "window:64+int4", "disabled")
_TOKENS = list(range(1000))


def _begin(store: PageStore, tokens: list[int], mode: str = "full") -> SequenceCache:
    """A sequence that has taken what there was, and stored the rest."""
    cache = SequenceCache(store, CacheMode("full"), tokens)
    cache.adopt()
    num_new = len(tokens) - cache.num_stored
    cache.reserve(num_new)
    cache.commit(num_new, is_exact=True)
    cache.mode = CacheMode(mode)
    return cache


def _settle(caches: list[SequenceCache]) -> None:
    while not all(cache.is_settled for cache in caches):
        for cache in caches:
            switch.advance(cache)
    check_holders([(cache, page) for cache in caches for page in pages_of(cache)])
    caches[0].store.check()


@pytest.mark.parametrize(("sinks", "first"), [(16, 16), (0, 64), (40, 48)])
def test_a_name_stands_for_all_tokens_up_to_its_end(sinks: int, first: int) -> None:
    names = Names(_TOKENS, Keep(sinks=sinks))
    assert [names.stop(number) for number in (-1, 0, 1)] == [0, first, first + 64]
    assert [names.num_whole(n) for n in (first - 1, first, first + 63, first + 64)] == [0, 1, 1, 2]
    other = Names([*_TOKENS[: first + 64], 7, *_TOKENS[first + 65 :]], Keep(sinks=sinks))
    assert [other[number] == names[number] for number in range(4)] == [True, True, False, False]


def test_bytes_of_a_shared_page_count_once_and_with_whoever_has_had_it_longest() -> None:
    store = make_store([_GROUP])
    first = _begin(store, _TOKENS[:208])
    alone_bytes = store.used_bytes
    second = _begin(store, _TOKENS[:220])
    assert second.num_adopted == 208
    assert (
        store.used_bytes == alone_bytes + _GROUP.page_bytes == first.used_bytes + second.used_bytes
    )
    assert second.borrowed_bytes == first.used_bytes == alone_bytes
    first.drop()
    assert (second.used_bytes, second.borrowed_bytes) == (alone_bytes + _GROUP.page_bytes, 0)
    second.retire()
    assert store.used_bytes == 0
    assert store.budget.reclaimable_bytes == alone_bytes
    store.prefixes.shrink(0)
    assert store.held_bytes == 0


def test_the_end_of_a_prefix_is_released_before_its_beginning_and_older_ones_first() -> None:
    store = make_store([_GROUP])
    for offset in (0, 500):
        _begin(store, _TOKENS[offset : offset + 144]).retire()
    num_found = []
    while store.prefixes.release_oldest():
        old, new = (
            store.prefixes.find(Names(_TOKENS[offset : offset + 200], store.keep), 0)[0]
            for offset in (0, 500)
        )
        num_found.append((old, new))
    assert num_found == [(2, 3), (1, 3), (0, 3), (0, 2), (0, 1), (0, 0)]


def test_blocks_that_the_model_hides_by_then_may_be_gone() -> None:
    store = make_store([_GROUP, _SLIDING])
    first = _begin(store, _TOKENS[:400])
    _settle([first])
    assert first.gap_stops == (0, 272)
    later = SequenceCache(store, CacheMode("full"), _TOKENS[:410])
    later.adopt()
    assert (later.num_stored, later.gap_stops) == (400, (0, 272))
    earlier = SequenceCache(store, CacheMode("full"), _TOKENS[:300])
    earlier.adopt()
    assert earlier.num_stored == 0, "its window reaches back to what is gone"
    for cache in (first, later):
        cache.drop()
    store.check()
    assert store.used_bytes == 0


@given(
    modes=st.lists(st.sampled_from(_MODES), min_size=2, max_size=5),
    lengths=st.lists(st.integers(1, 500), min_size=5, max_size=5),
    turns=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(_MODES)), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_whoever_shares_in_whatever_modes_nobody_weighs_more_than_costs_say(
    modes: list[str], lengths: list[int], turns: list[tuple[int, str]]
) -> None:
    store = make_store([_GROUP, _SLIDING])
    caches = [_begin(store, _TOKENS[:num], mode) for num, mode in zip(lengths, modes, strict=False)]
    _check_weight(store, caches)
    for place, mode in turns:
        caches[place % len(caches)].mode = CacheMode(mode)
        _check_weight(store, caches)
    while caches:
        caches.pop(0).retire()
        if caches:
            _check_weight(store, caches)
    assert store.used_bytes == 0
    store.prefixes.shrink(0)
    assert store.held_bytes == 0


def _check_weight(store: PageStore, caches: list[SequenceCache]) -> None:
    _settle(caches)
    groups = [pages.group for pages in store.groups]
    told_bytes = sum(
        costs.sequence_bytes(c.mode, c.num_stored, groups, store.keep, c.gap_stops) for c in caches
    )
    assert sum(cache.used_bytes for cache in caches) == store.used_bytes <= told_bytes
