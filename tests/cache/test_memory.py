"""Memory that a switch frees goes back to the system, and a switch needs next to none itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from driver import make_store

from adaptive_kv.cache import switch
from adaptive_kv.cache.geometry import LayerGroup
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.policy import CacheMode

_SLAB_BYTES = 1 << 20


def _group(head_dim: int = 64, dtype: torch.dtype = torch.bfloat16) -> LayerGroup:
    return LayerGroup((0, 1), 2, head_dim, head_dim, dtype)


def _grow_interleaved(store: PageStore, num_sequences: int, num_slabs: int) -> list[SequenceCache]:
    """Sequences that took their pages in turns, until so many slabs are full; all touched."""
    caches = [SequenceCache(store, CacheMode("full")) for _ in range(num_sequences)]
    pool = store.groups[0].pages
    while pool.num_slabs < num_slabs or pool.num_free > num_sequences:
        for cache in caches:
            cache.reserve(16)
            cache.commit(16, is_exact=True)
    for number in range(num_slabs):
        slab = pool.slab(number)
        slab.keys.fill_(1)
        slab.values.fill_(1)
    return caches


def _convert(caches: list[SequenceCache], mode: str, max_bytes: int) -> None:
    """As the engine does: a bounded share for each sequence in turn, then compaction."""
    for cache in caches:
        cache.mode = CacheMode(mode)
    while not all(cache.is_settled for cache in caches):
        for cache in caches:
            switch.advance(cache, max_bytes)
            cache.store.compact(sys.maxsize)


@pytest.mark.parametrize("is_at_limit", [True, False])
@pytest.mark.parametrize("num_sequences", [1, 8])
@pytest.mark.parametrize("mode", ["int8", "int4", "window:256+int4"])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_a_whole_pool_is_packed_within_one_slab(
    head_dim: int, mode: str, num_sequences: int, *, is_at_limit: bool
) -> None:
    budget = Budget()
    store = make_store([_group(head_dim)], slab_bytes=_SLAB_BYTES, budget=budget)
    caches = _grow_interleaved(store, num_sequences, num_slabs=6)
    before_bytes = budget.peak_cache_bytes = budget.cache_bytes
    if is_at_limit:
        budget.limit_bytes = budget.used_bytes
    _convert(caches, mode, max_bytes=_SLAB_BYTES // 8)
    store.check()
    assert budget.peak_cache_bytes <= before_bytes + (0 if is_at_limit else _SLAB_BYTES)
    assert store.held_bytes - store.used_bytes <= 2 * _SLAB_BYTES
    assert budget.cache_bytes < 0.8 * before_bytes


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_pool_at_its_limit_is_packed_even_without_pause(mode: str) -> None:
    budget = Budget()
    store = make_store([_group()], slab_bytes=_SLAB_BYTES, budget=budget)
    caches = _grow_interleaved(store, 2, num_slabs=8)
    budget.limit_bytes = budget.used_bytes
    for cache in caches:
        cache.mode = CacheMode(mode)
        switch.advance(cache)
        assert cache.is_settled
    store.check()


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_what_was_packed_at_the_limit_can_grow_on_and_be_packed_again(mode: str) -> None:
    budget = Budget()
    store = make_store([_group()], slab_bytes=_SLAB_BYTES, budget=budget)
    caches = _grow_interleaved(store, 4, num_slabs=6)
    budget.limit_bytes = budget.used_bytes
    num_before = caches[0].num_stored
    with pytest.raises(torch.OutOfMemoryError):
        while True:
            _convert(caches, mode, max_bytes=_SLAB_BYTES)
            store.check()
            for cache in caches:
                cache.reserve(16)
                cache.commit(16, is_exact=True)
    assert caches[0].num_stored > num_before * (1.5 if mode == "int8" else 2.5)


def test_resident_memory_falls_by_what_the_accounting_says_was_freed() -> None:
    """In a process of its own, whose memory nothing else changes."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    accounted_bytes, resident_bytes = map(int, done.stdout.split())
    assert accounted_bytes > 6 * 4 * 2**20
    assert resident_bytes >= 0.9 * accounted_bytes


_MEASURE = """
import sys, resource
from pathlib import Path
sys.path.insert(0, sys.path[0] + "/cache")
import cache.test_memory as this

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

store = this.make_store([this._group()], slab_bytes=4 << 20)
# What torch needs to convert at all, before anything is measured.
this._convert(this._grow_interleaved(store, 1, num_slabs=1), "int4", 1 << 20)
caches = this._grow_interleaved(store, 8, num_slabs=10)
used, resident = store.used_bytes, resident_bytes()
this._convert(caches, "int4", 1 << 20)
print(used - store.used_bytes, resident - resident_bytes())
"""
