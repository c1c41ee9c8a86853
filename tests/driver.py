"""Sequences over `RaggedBatch` step by step, without an engine: no sampling, no scheduling."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.cache import switch
from adaptive_kv.cache.geometry import Keep, LayerGroup
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.model import Model
from adaptive_kv.policy import CacheMode

CPU = torch.device("cpu")
MODES = (
    CacheMode("full"),
    CacheMode("window:128"),
    CacheMode("int8"),
    CacheMode("int4"),
    CacheMode("window:128+int8"),
    CacheMode("window:128+int4"),
    CacheMode("disabled"),
)
"""One of each of the seven forms."""


def make_store(
    groups: Sequence[LayerGroup],
    keep: Keep | None = None,
    slab_bytes: int = 64 * 1024,
    budget: Budget | None = None,
) -> PageStore:
    """A store on the CPU, by default of small slabs without a budget."""
    return PageStore(
        groups,
        keep=Keep(sinks=16, recent=32) if keep is None else keep,
        slab_bytes=slab_bytes,
        budget=Budget() if budget is None else budget,
        device=CPU,
    )


@dataclass(eq=False)
class Live:
    """A sequence under way: its token ids and its cache."""

    cache: SequenceCache
    ids: list[int] = field(default_factory=list)

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not seen, or would have to see again."""
        return len(self.ids) - self.cache.num_stored


def start(store: PageStore, ids: Sequence[int], mode: str = "full") -> Live:
    """A sequence that has not run yet."""
    return Live(SequenceCache(store, CacheMode(mode)), list(ids))


@torch.inference_mode()
def step(
    model: Model,
    lives: Sequence[Live],
    chunk_tokens: int = 64,
    *,
    use_kernels: bool = True,
) -> list[Tensor]:
    """One forward of the next chunk of every sequence; logits after the last token of each.

    Leaves the caches as they are besides: pages are not switched.
    """
    rows: list[Row] = []
    ids: list[int] = []
    positions: list[int] = []
    last: list[int] = []
    for live in lives:
        first = live.cache.num_stored
        num_new = live.num_pending
        if not live.cache.mode.is_disabled:
            num_new = min(num_new, chunk_tokens)
            live.cache.reserve(num_new)
        rows.append(Row(live.cache, first, num_new))
        ids += live.ids[first : first + num_new]
        positions += range(first, first + num_new)
        last.append(len(ids) - 1)
    batch = RaggedBatch(lives[0].cache.store, rows, use_kernels=use_kernels)
    logits = model.forward(ids, positions, last, batch)
    for row in rows:
        if row.is_stored:
            row.cache.commit(row.num_new, is_exact=row.is_exact)
    return list(logits)


def settle(lives: Sequence[Live], max_bytes: int | None = None) -> None:
    """Bring every cache to its mode's plan, emptying slabs on the way."""
    for live in lives:
        while not live.cache.is_settled:
            switch.advance(live.cache, max_bytes)
            live.cache.store.compact(live.cache.store.slab_bytes)
