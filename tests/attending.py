"""Kernels against plain torch: the same pages, the same rows, both answers."""

import functools

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
Inputs = tuple[Tensor, Tensor, Tensor]


def check_decode(
    layers: LayerGroup,
    call: LayerCall,
    group: int,
    lengths: tuple[int, ...] = LENGTHS,
    modes: tuple[str, ...] = MODES,
) -> None:
    """Assert that one token of every length in every mode is answered alike."""
    store = make_store([layers], Keep(16, 30))
    caches = [filled(store, mode, length) for mode in modes for length in lengths]
    for cache in caches:
        cache.reserve(1)
    rows = [Row(cache, cache.num_stored, 1) for cache in caches]
    compare(store, rows, call, make_inputs(layers, len(caches), group))


def compare(store: PageStore, rows: list[Row], call: LayerCall, inputs: Inputs) -> None:
    """Assert that both ways answer rows alike."""
    answer = functools.partial(attend, store, rows, call, inputs)
    wanted, found = answer(use_kernels=False), answer(use_kernels=True)
    error = (found - wanted).float().abs().max() / wanted.float().abs().max()
    assert error <= TOLERANCE[found.dtype]


def filled(store: PageStore, mode: str, length: int) -> SequenceCache:
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


def make_inputs(layers: LayerGroup, num_tokens: int, group: int) -> Inputs:
    """Queries, keys and values as models hand them over."""
    heads = layers.num_kv_heads
    shapes = (
        (num_tokens, heads * group, layers.key_dim),
        (num_tokens, heads, layers.key_dim),
        (num_tokens, heads, layers.value_dim),
    )
    queries, keys, values = (torch.randn(shape).to(layers.dtype) for shape in shapes)
    return queries.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1)


def attend(
    store: PageStore, rows: list[Row], call: LayerCall, inputs: Inputs, *, use_kernels: bool
) -> Tensor:
    """One layer's answer."""
    return RaggedBatch(store, rows, use_kernels=use_kernels).attend(call, *inputs)
