"""The kernels for GPUs, run on the CPU by Triton's interpreter, give what plain torch gives.

`test_gpu.py` runs this in a process with `TRITON_INTERPRET=1`.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from attending import attend, check_decode, compare, filled, make_inputs
from driver import CPU, make_store
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptive_kv.attention import gpu, kernels
from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache import switch
from adaptive_kv.cache.formats.gpu import convert
from adaptive_kv.cache.geometry import Keep, LayerGroup
from adaptive_kv.cache.page import Page
from adaptive_kv.cache.store import GroupPages
from adaptive_kv.cache.table import SequenceCache, make_run
from adaptive_kv.policy import CacheMode

TOKENS = 128
SINK_LOGITS = torch.linspace(-3, 3, 6)
CALLS = {
    "softcap": LayerCall(layer=0, scaling=0.2, softcap=5.0),
    "sinks": LayerCall(layer=0, scaling=0.2, sink_logits=SINK_LOGITS),
    "window": LayerCall(layer=0, scaling=0.2, window=50),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture(autouse=True)
def _interpreted() -> Iterator[None]:
    assert os.environ["TRITON_INTERPRET"] == "1", "run me through test_gpu.py"
    torch.manual_seed(0)
    yield


@pytest.mark.parametrize(
    ("kv_heads", "group", "key_dim", "value_dim", "dtype"),
    [
        (1, 1, 16, 16, torch.float32),
        (2, 3, 64, 64, torch.float32),
        (1, 9, 80, 48, torch.float32),
        (1, 4, 128, 128, torch.bfloat16),
        (1, 2, 96, 96, torch.float16),
    ],
)
def test_a_token_is_answered_as_plain_torch_answers_it(
    kv_heads: int, group: int, key_dim: int, value_dim: int, dtype: torch.dtype
) -> None:
    layers = LayerGroup((0, 1), kv_heads, key_dim, value_dim, dtype)
    check_decode(layers, LayerCall(layer=1, scaling=key_dim**-0.5), group, (1, 40, 301))


@calls
def test_it_knows_what_some_models_add_to_attention(call: LayerCall) -> None:
    layers = LayerGroup((0,), 2, 64, 64, torch.float32, call.window)
    check_decode(layers, call, 3, (7, 301))


@calls
def test_many_tokens_see_a_past_of_any_format_and_each_other(call: LayerCall) -> None:
    """Rows of many tokens, of one, and of one that keeps nothing, in one batch."""
    layers = LayerGroup((0,), 2, 32, 32, torch.float32, call.window)
    store = make_store([layers], Keep(16, 30))
    rows = [_row(filled(store, mode, 190), n) for mode, n in _MIXED]
    rows.append(_row(SequenceCache(store, CacheMode("full")), 50))
    rows.append(Row(SequenceCache(store, CacheMode("disabled")), 0, 21))
    compare(store, rows, call, make_inputs(layers, sum(row.num_new for row in rows), 3))


_MIXED = (("full", 9), ("int8", 1), ("int4", 40), ("window:100+int4", 45))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_tokens_are_answered_in_16_bit_types(dtype: torch.dtype) -> None:
    layers = LayerGroup((0,), 1, 128, 64, dtype)
    store = make_store([layers], Keep(16, 30))
    rows = [_row(filled(store, mode, 200), 20) for mode in ("int8", "int4")]
    compare(store, rows, LayerCall(layer=0, scaling=0.1), make_inputs(layers, 40, 7))


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("full", "int8", "int4", "window:70", "window:130+int8")),
            st.integers(0, 230),
            st.integers(1, 20),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from((None, 3, 90)),
    st.booleans(),
)
def test_rows_of_any_length_in_any_mode_are_answered(
    rows: list[tuple[str, int, int]], window: int | None, has_sinks: bool
) -> None:
    layers = LayerGroup((0,), 1, 16, 24, torch.float32, window)
    store = make_store([layers], Keep(16, 30))
    placed = [_row(filled(store, mode, length), num_new) for mode, length, num_new in rows]
    sinks = SINK_LOGITS[:2] if has_sinks else None
    call = LayerCall(layer=0, scaling=0.3, window=window, sink_logits=sinks)
    compare(store, placed, call, make_inputs(layers, sum(row.num_new for row in placed), 2))


def test_what_was_never_written_into_a_page_does_not_matter() -> None:
    """The rest of the newest page may hold anything."""
    layers = LayerGroup((0,), 1, 64, 64, torch.float32)
    store = make_store([layers], Keep())
    cache = filled(store, "full", 5)
    slab, index = store.groups[0].pages.slab_and_index(cache.pages(0)[0])
    keys, values = store.groups[0].full.views(slab)
    for num_new in (1, 3):
        cache.reserve(num_new)
        keys[:, :, index, 5:] = values[:, :, index, 5:] = torch.nan
        call, rows = LayerCall(layer=0, scaling=1.0), [Row(cache, 5, num_new)]
        out = attend(store, rows, call, make_inputs(layers, num_new, 2), use_kernels=True)
        assert out.isfinite().all()


def test_lists_follow_a_sequence_that_grows_switches_and_moves() -> None:
    """Token by token while lists outgrow their room; many steps take over the last one's rows."""
    layers = LayerGroup((0,), 1, 16, 16, torch.float32)
    store = make_store([layers], Keep(16, 16), slab_bytes=8 * layers.page_bytes)
    call, caches = LayerCall(layer=0, scaling=0.25), [filled(store, "full", n) for n in (505, 61)]
    batch, num_followed = None, 0
    for step in range(24):
        for cache in caches:
            cache.reserve(1)
        rows = [Row(cache, cache.num_stored, 1) for cache in caches]
        inputs = make_inputs(layers, 2, 2)
        if batch is not None and batch.follow(rows):
            num_followed += 1
        else:
            batch = RaggedBatch(store, rows)
        if step % 4 == 0:
            wanted = attend(store, rows, call, inputs, use_kernels=False)
            torch.testing.assert_close(batch.attend(call, *inputs), wanted, atol=2e-6, rtol=1e-5)
        else:
            batch.attend(call, *inputs)
        for cache in caches:
            cache.commit(1, is_exact=True)
        if step == 15:
            caches[0].mode = CacheMode("int4")
        switch.advance(caches[0], 4 * layers.page_bytes)
        store.compact(layers.page_bytes)
    assert num_followed > 5


def test_the_kernels_for_gpus_are_the_ones_that_answer_here() -> None:
    layers = LayerGroup((0,), 1, 16, 16, torch.float32)
    pages = make_store([layers], Keep()).groups[0]
    table = filled(make_store([layers], Keep()), "full", 3).page_table(0)
    assert isinstance(kernels.make_decodes(pages, [(0, 2, None, table, 1)], 16), gpu.DecodeRows)
    assert kernels.has_chunks(pages)


@pytest.mark.parametrize("dims", [(64, 64), (80, 48), (16, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("full", "int8"),
        ("full", "int4"),
        ("int8", "int4"),
        ("int4", "int8"),
        ("int8", "full"),
        ("int4", "full"),
    ],
)
def test_pages_are_converted_to_the_same_bytes_as_by_torch(
    source: str, target: str, dtype: torch.dtype, dims: tuple[int, int]
) -> None:
    pages = make_store([LayerGroup((0, 1), 2, *dims, dtype)]).groups[0]
    sources, mine, wanted = (_pages(pages, name) for name in (source, target, target))
    noise = [torch.randn(2, 2, TOKENS, dim) * torch.logspace(-4, 2, dim) for dim in dims]
    noise[0][..., 3], noise[1][:, :, 7] = 0.5, 0
    pages.formats[source].write(make_run(pages, sources), *(x.to(dtype) for x in noise))
    per_slab = pages.pages.pages_per_slab, pages.sides.pages_per_slab
    convert(pages.group, pages.lines(sources), pages.lines(mine), per_slab, CPU)
    switch.rewrite_in_torch(pages, sources, wanted)
    is_rotated = "int4" in (source, target)
    for one, other in zip(_bytes(pages, mine), _bytes(pages, wanted), strict=True):
        # Rotating adds up in an order of its own, and a sum may fall on the other side.
        num_unlike = int((one != other).sum())
        assert num_unlike <= (one.numel() // 500 if is_rotated else 0)


def _pages(pages: GroupPages, name: str) -> list[Page]:
    size = pages.formats[name].tokens_per_page
    return [pages.take(name, start) for start in range(0, TOKENS, size)]


def _bytes(pages: GroupPages, some: list[Page]) -> list[Tensor]:
    """Keys, values and the scales of both."""
    pools = [(pages.pages, some), (pages.sides, [p.side for p in some if p.side is not None])]
    found = [(slab, at) for pool, of in pools for slab, at in map(pool.slab_and_index, of)]
    return [piece[:, :, at] for slab, at in found for piece in (slab.keys, slab.values)]


def _row(cache: SequenceCache, num_new: int) -> Row:
    cache.reserve(num_new)
    return Row(cache, cache.num_stored, num_new)
