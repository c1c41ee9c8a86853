"""Sequences of noise in pages on any device, and a forward over them, without an engine."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_kv.attention.batch import Row
from adaptive_kv.cache import switch
from adaptive_kv.cache.geometry import Keep, LayerGroup
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.forward import Forward
from adaptive_kv.engine.graphs import DecodeGraphs, capture_decodes
from adaptive_kv.engine.model import Model
from adaptive_kv.policy import CacheMode


@dataclass(frozen=True, slots=True)
class Place:
    """Where it all happens. `is_dry` goes through every line in little."""

    device: torch.device
    is_dry: bool

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def best_s(self, act: Callable[[], object], num_times: int = 5) -> float:
        """The quickest of several; the first one, which may compile, is not counted."""
        act()
        return min(self.timed_s(act) for _ in range(1 if self.is_dry else num_times))

    def typical_s(self, act: Callable[[], object], num_times: int) -> float:
        """The median of several, the first ones left out."""
        for _ in range(1 if self.is_dry else 4):
            act()
        return statistics.median(self.timed_s(act) for _ in range(1 if self.is_dry else num_times))

    def timed_s(self, act: Callable[[], object]) -> float:
        """How long it took."""
        self.wait()
        started_s = time.perf_counter()
        act()
        self.wait()
        return time.perf_counter() - started_s


def make_store(place: Place, groups: Sequence[LayerGroup]) -> PageStore:
    """Pages without a budget."""
    return PageStore(
        groups,
        keep=Keep(16, 32 if place.is_dry else 128),
        slab_bytes=_slab_bytes(place),
        budget=Budget(),
        device=place.device,
    )


def _slab_bytes(place: Place) -> int:
    return 1 << 16 if place.is_dry else 32 << 20


def filled(store: PageStore, mode: str, length: int, *, num_new: int = 1) -> SequenceCache:
    """A settled cache of noise, and room for what comes next."""
    cache = SequenceCache(store, CacheMode("full"))
    cache.reserve(length)
    for group, pages in enumerate(store.groups):
        for page in cache.pages(group):
            slab, index = pages.pages.slab_and_index(page)
            for view in pages.full.views(slab):
                view[:, :, index].normal_()
    cache.commit(length, is_exact=True)
    cache.mode = CacheMode(mode)
    while not cache.is_settled:
        switch.advance(cache)
    cache.reserve(num_new)
    return cache


class Decoding:
    """Sequences that decode greedily, all at once, one token after the other."""

    def __init__(
        self, model: Model, caches: Sequence[SequenceCache], graphs: DecodeGraphs | None = None
    ) -> None:
        self._caches = caches
        self._ids = [1] * len(caches)
        self._forward = Forward(model, caches[0].store, graphs)

    def step(self) -> None:
        """One token more for everyone; it comes back to the host, as in a server."""
        rows = [Row(cache, cache.num_stored, 1) for cache in self._caches]
        for cache in self._caches:
            cache.reserve(1)
        positions = [row.position for row in rows]
        logits = self._forward(rows, self._ids, positions, range(len(rows)))
        self._ids = logits.argmax(-1).tolist()
        for cache in self._caches:
            cache.commit(1, is_exact=True)


def captured(place: Place, model: Model, max_rows: int) -> DecodeGraphs:
    """Decode steps for stores as `make_store` makes them; `is_dry` repeats them, uncaptured."""
    store = make_store(place, model.groups)
    return capture_decodes(
        model,
        keep=store.keep,
        slab_bytes=_slab_bytes(place),
        budget=Budget(),
        max_rows=max_rows,
        capture=(lambda run: run) if place.is_dry else None,
    )


def random_rows(place: Place, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Rows `[heads, tokens, dim]`, laid out as models make them."""
    heads, tokens, dim = shape
    rows = torch.randn(tokens, heads, dim, device=place.device).to(dtype)
    return rows.transpose(0, 1)
