"""The CPU kernel gives what plain torch gives, whatever the shape of heads and type of pages."""

import functools

import pytest
import torch
from driver import make_store
from torch import Tensor

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache import switch
from adaptive_kv.cache.geometry import Keep, LayerGroup
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.policy import CacheMode

MODES = ("full", "int8", "int4", "window:100+int4")
LENGTHS = (1, 7, 40, 300, 701)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize(
    ("kv_heads", "group", "key_dim", "value_dim", "dtype"),
    [
        (1, 1, 16, 16, torch.float32),
        (2, 3, 64, 64, torch.float32),
        (1, 9, 80, 80, torch.float32),
        (1, 2, 48, 32, torch.float32),
        (2, 4, 128, 128, torch.bfloat16),
        (1, 2, 96, 96, torch.float16),
    ],
)
def test_it_gives_what_plain_torch_gives(
    kv_heads: int, group: int, key_dim: int, value_dim: int, dtype: torch.dtype
) -> None:
    layers = LayerGroup((0, 1), kv_heads, key_dim, value_dim, dtype)
    call = LayerCall(layer=1, scaling=key_dim**-0.5)
    _check(layers, call, group)


@pytest.mark.parametrize(
    "call",
    [
        LayerCall(layer=0, scaling=0.2, softcap=5.0),
        LayerCall(layer=0, scaling=0.2, sink_logits=torch.linspace(-3, 3, 6)),
        LayerCall(layer=0, scaling=0.2, window=50),
    ],
    ids=["softcap", "sinks", "window"],
)
def test_it_knows_what_some_models_add_to_attention(call: LayerCall) -> None:
    _check(LayerGroup((0,), 2, 64, 64, torch.float32, call.window), call, 3)


def test_what_was_never_written_into_a_page_does_not_matter() -> None:
    """The rest of the newest page may hold anything."""
    layers = LayerGroup((0,), 1, 64, 64, torch.float32)
    store = make_store([layers], Keep())
    cache = _filled(store, "full", 5)
    slab, index = store.groups[0].pages.slab_and_index(cache.pages(0)[0])
    cache.reserve(1)
    keys, values = store.groups[0].full.views(slab)
    keys[:, :, index, 5:] = values[:, :, index, 5:] = torch.nan
    out = _attend(store, [cache], LayerCall(layer=0, scaling=1.0), _inputs(layers, 1, 2), True)
    assert out.isfinite().all()


def _check(layers: LayerGroup, call: LayerCall, group: int) -> None:
    store = make_store([layers], Keep(16, 30))
    caches = [_filled(store, mode, length) for mode in MODES for length in LENGTHS]
    for cache in caches:
        cache.reserve(1)
    inputs = _inputs(layers, len(caches), group)
    attend = functools.partial(_attend, store, caches, call, inputs)
    wanted, found = attend(False), attend(True)
    error = (found - wanted).float().abs().max() / wanted.float().abs().max()
    assert error <= TOLERANCE[layers.dtype]


def _filled(store: PageStore, mode: str, length: int) -> SequenceCache:
    """A settled cache of noise whose channels differ in size."""
    cache = SequenceCache(store, CacheMode("full"))
    cache.reserve(length)
    layers = store.groups[0].group
    for page in cache.pages(0):
        slab, index = store.groups[0].pages.slab_and_index(page)
        for view in store.groups[0].full.views(slab):
            noise = torch.randn(view[:, :, index].shape) * torch.linspace(0.1, 2, view.shape[-1])
            view[:, :, index] = noise.to(layers.dtype)
    cache.commit(length, is_exact=True)
    cache.mode = CacheMode(mode)
    while not cache.is_settled:
        switch.advance(cache)
    return cache


def _inputs(layers: LayerGroup, num_rows: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    heads = layers.num_kv_heads
    shapes = (
        (num_rows, heads * group, layers.key_dim),
        (num_rows, heads, layers.key_dim),
        (num_rows, heads, layers.value_dim),
    )
    queries, keys, values = (torch.randn(shape).to(layers.dtype) for shape in shapes)
    return queries.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1)


def _attend(
    store: PageStore,
    caches: list[SequenceCache],
    call: LayerCall,
    inputs: tuple[Tensor, Tensor, Tensor],
    use_kernels: bool,
) -> Tensor:
    rows = [Row(cache, cache.num_stored, 1) for cache in caches]
    batch = RaggedBatch(store, rows, use_kernels=use_kernels)
    return batch.attend(call, *inputs)
