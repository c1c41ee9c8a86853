"""The CPU kernel gives what plain torch gives, whatever the shape of heads and type of pages."""

import itertools

import pytest
import torch
from attending import MODES, attend, check_decode, compare, filled, make_inputs
from driver import make_store

from adaptive_kv.attention import cpu
from adaptive_kv.attention.batch import Row
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache.geometry import Keep, LayerGroup
from adaptive_kv.cache.table import make_run


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
    check_decode(layers, call, group)


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
    check_decode(LayerGroup((0,), 2, 64, 64, torch.float32, call.window), call, 3)


@pytest.mark.parametrize(
    ("group", "dim", "dtype"), [(3, 64, torch.float32), (4, 128, torch.bfloat16)]
)
@pytest.mark.parametrize("window", [None, 5, 90])
def test_rows_of_a_few_tokens_see_each_other_as_well(
    group: int, dim: int, dtype: torch.dtype, window: int | None
) -> None:
    layers = LayerGroup((0, 1), 2, dim, dim, dtype, window)
    store = make_store([layers], Keep(16, 30))
    lengths = {0: 16, 3: 2, 30: 1, 41: 9, 300: 16, 701: 7}
    rows = []
    for mode, (length, num_new) in itertools.product(MODES, lengths.items()):
        cache = filled(store, mode, length)
        cache.reserve(num_new)
        rows.append(Row(cache, length, num_new))
    num_tokens = sum(row.num_new for row in rows)
    call = LayerCall(layer=1, scaling=0.125, window=window)
    compare(store, rows, call, make_inputs(layers, num_tokens, group))


def test_a_row_of_more_tokens_stands_beside_those_of_a_few() -> None:
    layers = LayerGroup((0,), 2, 64, 64, torch.float32)
    store = make_store([layers], Keep(16, 30))
    rows = []
    for length, num_new in ((20, 1), (40, cpu.MAX_NEW + 1), (100, cpu.MAX_NEW)):
        cache = filled(store, "int8", length)
        cache.reserve(num_new)
        rows.append(Row(cache, length, num_new))
    num_tokens = sum(row.num_new for row in rows)
    compare(store, rows, LayerCall(layer=0, scaling=0.2), make_inputs(layers, num_tokens, 3))


def test_what_a_row_of_a_few_tokens_writes_is_what_later_ones_read() -> None:
    """Token by token, or some of them together: the same pages in the end."""
    layers = LayerGroup((0,), 2, 128, 128, torch.bfloat16)
    inputs, call = make_inputs(layers, 40, 4), LayerCall(layer=0, scaling=0.2)
    written = []
    for step in (1, 5, 16):
        store = make_store([layers], Keep(16, 30))
        cache = filled(store, "full", 0)
        for first in range(0, 40, step):
            some = slice(first, min(first + step, 40))
            num_new = some.stop - first
            cache.reserve(num_new)
            part = inputs[0][:, some], inputs[1][:, some], inputs[2][:, some]
            attend(store, [Row(cache, first, num_new)], call, part, use_kernels=True)
            cache.commit(num_new, is_exact=True)
        run, full = make_run(store.groups[0], list(cache.pages(0))), store.groups[0].full
        written.append(torch.cat(full.read(run, slice(None)), -1)[:, :, :40])
    assert torch.equal(written[0], written[1])
    assert torch.equal(written[0], written[2])


def test_what_was_never_written_into_a_page_does_not_matter() -> None:
    """The rest of the newest page may hold anything."""
    layers = LayerGroup((0,), 1, 64, 64, torch.float32)
    store = make_store([layers], Keep())
    cache = filled(store, "full", 5)
    slab, index = store.groups[0].pages.slab_and_index(cache.pages(0)[0])
    cache.reserve(1)
    keys, values = store.groups[0].full.views(slab)
    keys[:, :, index, 5:] = values[:, :, index, 5:] = torch.nan
    call, rows = LayerCall(layer=0, scaling=1.0), [Row(cache, 5, 1)]
    out = attend(store, rows, call, make_inputs(layers, 1, 2), use_kernels=True)
    assert out.isfinite().all()
