"""The kernel for the CPU makes of pages what plain torch makes of them, bit by bit."""

import itertools

import pytest
import torch
from driver import CPU, make_store
from torch import Tensor

from adaptive_kv.cache import switch
from adaptive_kv.cache.formats import FORMAT_NAMES, cpu
from adaptive_kv.cache.geometry import BLOCK_TOKENS, LayerGroup
from adaptive_kv.cache.page import Page
from adaptive_kv.cache.store import GroupPages
from adaptive_kv.cache.table import make_run

_SHAPES = ((1, 16, 16), (2, 64, 64), (2, 80, 48), (3, 6, 10), (1, 128, 256))
"""Heads, key size, value size."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

shapes = pytest.mark.parametrize("shape", _SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", _DTYPES, ids=str)
conversions = pytest.mark.parametrize(
    ("source", "target"), [*itertools.permutations(FORMAT_NAMES, 2)]
)


def _pages(shape: tuple[int, int, int], dtype: torch.dtype) -> GroupPages:
    """Of slabs so small that the pages of a block lie in several."""
    group = LayerGroup((0, 1, 2), *shape, dtype)
    return make_store([group], slab_bytes=3 * group.page_bytes).groups[0]


def _take(pages: GroupPages, *names: str) -> list[Page]:
    """Pages of so many tokens in turn, a block's worth of tokens together."""
    taken: list[Page] = []
    start = 0
    for name in itertools.cycle(names):
        if start == BLOCK_TOKENS:
            return taken
        taken.append(pages.take(name, start))
        start += pages.formats[name].tokens_per_page
    raise AssertionError


def _fill(pages: GroupPages, some: list[Page]) -> None:
    """Channels that differ in size, a constant one, a constant token, and what float16 lacks."""
    group = pages.group
    rows = []
    for dim in (group.key_dim, group.value_dim):
        noise = torch.randn(3, group.num_kv_heads, BLOCK_TOKENS, dim) * torch.logspace(-6, 3, dim)
        noise[..., 1], noise[:, :, 7], noise[:, :, 9, 0] = 0.5, -0.25, -3e5
        rows.append(noise.clamp(*_limits(group.dtype)).to(group.dtype))
    for page in some:
        own = slice(page.start, page.start + pages.formats[page.format].tokens_per_page)
        pages.formats[page.format].write(make_run(pages, [page]), *(x[:, :, own] for x in rows))


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    limits = torch.finfo(dtype)
    return limits.min, limits.max


def _bytes(pages: GroupPages, some: list[Page]) -> list[Tensor]:
    """Keys and values, and what is kept beside them."""
    found = []
    for page in some:
        slab, index = pages.pages.slab_and_index(page)
        found += [slab.keys[:, :, index], slab.values[:, :, index]]
        if page.side is not None:
            side, index = pages.sides.slab_and_index(page.side)
            num_tokens = pages.formats[page.format].tokens_per_page
            found += [side.keys[:, :, index], side.values[:, :, index, : 4 * num_tokens]]
    return found


def _check(pages: GroupPages, sources: list[Page], target: str) -> None:
    _fill(pages, sources)
    mine, wanted = _take(pages, target), _take(pages, target)
    switch.rewrite(pages, sources, mine)
    switch.rewrite_in_torch(pages, sources, wanted)
    found = zip(_bytes(pages, mine), _bytes(pages, wanted), strict=True)
    assert all(torch.equal(one, other) for one, other in found)


@shapes
@dtypes
@conversions
def test_it_writes_the_same_bytes(
    source: str, target: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    pages = _pages(shape, dtype)
    sources = _take(pages, source)
    assert cpu.can_convert(pages.group, pages.lines(sources), CPU), "plain torch answers"
    _check(pages, sources, target)


@dtypes
def test_a_block_may_be_of_pages_of_several_formats(dtype: torch.dtype) -> None:
    pages = _pages((2, 32, 16), dtype)
    _check(pages, _take(pages, "int8", *["full"] * (dtype.itemsize * 2)), "int4")


@conversions
def test_neighbours_are_left_alone(source: str, target: str) -> None:
    pages = _pages((2, 16, 16), torch.bfloat16)
    others, sources = _take(pages, target), _take(pages, source)
    _fill(pages, sources)
    _fill(pages, others)
    mine, more = _take(pages, target), _take(pages, source)
    _fill(pages, more)
    before = [piece.clone() for piece in _bytes(pages, [*others, *sources, *more])]
    switch.rewrite(pages, sources, mine)
    after = _bytes(pages, [*others, *sources, *more])
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
