"""What is remembered of weights equals the arithmetic that they come from."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plans import keeps, modes, own_windows

from adaptive_kv.cache.costs import page_bytes, sequence_bytes
from adaptive_kv.cache.geometry import BLOCK_TOKENS, Keep, LayerGroup
from adaptive_kv.cache.weigher import Weigher
from adaptive_kv.policy import CacheMode


def _group(own_window: int | None, dtype: torch.dtype = torch.bfloat16) -> LayerGroup:
    return LayerGroup((0,), 1, 16, 16, dtype, own_window)


@given(
    mode=modes,
    num_tokens=st.integers(0, 3000),
    num_dropped=st.integers(0, 3000),
    keep=keeps,
    own_window=own_windows,
)
@settings(max_examples=600, deadline=None)
@example(CacheMode("full"), 2000, 1800, Keep(), 1000)
@example(CacheMode("int4"), 300, 300, Keep(), None)
def test_a_sequence_with_a_gap_of_any_length_weighs_what_its_plan_does(
    mode: CacheMode, num_tokens: int, num_dropped: int, keep: Keep, own_window: int | None
) -> None:
    num_blocks = min(num_dropped, max(0, num_tokens - keep.sinks)) // BLOCK_TOKENS
    gap_stop = keep.sinks + num_blocks * BLOCK_TOKENS if num_blocks else 0
    group = _group(own_window)
    weigher = Weigher([group], keep)
    wanted = page_bytes(mode, num_tokens, group, keep, gap_stop)
    assert weigher.bytes(mode, num_tokens, (gap_stop,)) == wanted
    assert weigher.bytes(mode, num_tokens, (gap_stop,)) == wanted  # now from memory


def test_groups_of_layers_add_up() -> None:
    """A model with layers of two kinds weighs both."""
    keep, groups = Keep(), [_group(None), _group(128, torch.float32)]
    mode = CacheMode("window:256+int4")
    weigher = Weigher(groups, keep)
    for num_tokens in range(0, 1500, 7):
        wanted = sequence_bytes(mode, num_tokens, groups, keep, (0, 0))
        assert weigher.bytes(mode, num_tokens, (0, 0)) == wanted
