"""Sequences that were never computed: pages filled with noise, for measuring and comparing."""

from adaptive_kv.cache import switch
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.policy import CacheMode


def noisy_cache(store: PageStore, mode: CacheMode, length: int) -> SequenceCache:
    """A settled cache of so many tokens, and room for the next.

    Raises what an allocator says where memory is short; nothing is kept then.
    """
    cache = SequenceCache(store, mode)
    try:
        if length:
            cache.reserve(length)
            fill_with_noise(cache)
            cache.commit(length, is_exact=True)
            switch.advance(cache)
            cache.reserve(1)
    except RuntimeError:
        cache.drop()
        raise
    return cache


def fill_with_noise(cache: SequenceCache) -> None:
    """Write into all pages of a cache, which are full ones, what stands for keys and values.

    Memory that was never written is not there yet, and zeros are not like other numbers.
    """
    for group, pages in enumerate(cache.store.groups):
        for page in cache.pages(group):
            slab, index = pages.pages.slab_and_index(page)
            for pieces in (slab.keys, slab.values):
                pieces[:, :, index].view(pages.group.dtype).normal_()
