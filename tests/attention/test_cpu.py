"""The CPU kernel gives what plain torch gives, whatever the shape of heads and type of pages."""

import pytest
import torch
from attending import attend, check_decode, filled, make_inputs
from driver import make_store

from adaptive_kv.attention.batch import Row
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache.geometry import Keep, LayerGroup


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
