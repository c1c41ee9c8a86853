"""What each mode would cost for the sequences of this moment, from page arithmetic alone.

`page_bytes` is exact: once its pages have settled, a sequence weighs precisely this. What exists
only during a step (`workspace_bytes`) is bounded from above from the model's widths, because the
memory budget and the choice of `disabled` depend on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adaptive_kv.cache.disabled import MLP_CHUNK_TOKENS
from adaptive_kv.cache.formats import make_formats
from adaptive_kv.cache.geometry import BLOCK_TOKENS, Keep, LayerGroup
from adaptive_kv.cache.plan import Reach, make_plan
from adaptive_kv.cache.window import DISTANCES
from adaptive_kv.policy import CacheMode

SCORE_BYTES = 2 * 2**20
"""Attention scores are computed for as many queries at a time as fit into this."""

_SMALL_BYTES = 2**15
"""Positions, places and what else does not grow with the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWidths:
    """Widths that decide how large a step's activations are; `itemsize` in bytes."""

    hidden: int
    mlp: int
    """Intermediate size of the MLP; for mixtures of experts, what a token needs in all of its."""
    query: int
    """Query heads times head size, of the widest layer."""
    vocab: int
    itemsize: int


def page_bytes(
    mode: CacheMode, num_tokens: int, group: LayerGroup, keep: Keep, gap_stop: int = 0
) -> int:
    """Bytes of one group's pages for one settled sequence of `num_tokens` in `mode`."""
    formats = make_formats(group)
    spans = make_plan(mode, num_tokens, keep, formats, Reach(group.window, gap_stop))
    total = 0
    for span in spans:
        if span.format is None:
            continue
        used = formats[span.format]
        num_pages = -(-(span.stop - span.start) // used.tokens_per_page)
        total += num_pages * (group.page_bytes + (group.side_bytes if used.is_packed else 0))
    return total


def sequence_bytes(
    mode: CacheMode,
    num_tokens: int,
    groups: Sequence[LayerGroup],
    keep: Keep,
    gap_stops: Sequence[int] | None = None,
) -> int:
    """Bytes of all groups' pages for one settled sequence; `gap_stops` by group, none if None."""
    stops = [0] * len(groups) if gap_stops is None else gap_stops
    return sum(
        page_bytes(mode, num_tokens, group, keep, stop)
        for group, stop in zip(groups, stops, strict=True)
    )


def regular_from(
    mode: CacheMode, groups: Sequence[LayerGroup], keep: Keep, *, max_window: float = math.inf
) -> int:
    """From so many tokens on every further block weighs the same.

    Windows of `max_window` tokens and more are taken for ones that no sequence outgrows.
    """
    windows = [0, mode.window or 0, *(group.window or 0 for group in groups)]
    reach = max(window for window in windows if window < max_window)
    return keep.sinks + keep.recent + reach + 2 * BLOCK_TOKENS


def workspace_bytes(
    widths: ModelWidths, groups: tuple[LayerGroup, ...], num_new: int, num_logits: int, longest: int
) -> int:
    """A bound of what a step needs besides pages.

    `num_new` tokens go through the model, `num_logits` of them through its head; `longest` is the
    longest context among them in tokens, new ones included.
    """
    itemsize, float32 = widths.itemsize, 4
    row_elements = max(group.row_elements for group in groups)
    # Norms and rotary embeddings work in float32, whatever the model's type.
    hidden = num_new * widths.hidden * (3 * itemsize + 3 * float32)
    attention = num_new * (widths.query + row_elements) * (3 * itemsize + 2 * float32)
    mlp = min(num_new, MLP_CHUNK_TOKENS) * widths.mlp * 4 * itemsize
    # What is gathered from pages is joined with the new rows; packed pages pass through float32.
    gathered = longest * row_elements * (2 * itemsize + float32)
    pairs = num_new * longest
    visible = pairs * len(groups) + 2 * 8 * min(pairs, DISTANCES)
    scores = min(3 * SCORE_BYTES, 3 * float32 * pairs * _heads(widths, groups))
    logits = num_logits * widths.vocab * 4 * float32
    # A layer's attention has ended when its MLP begins.
    layer = max(attention + gathered + scores, mlp)
    return hidden + layer + visible + logits + _SMALL_BYTES


def _heads(widths: ModelWidths, groups: tuple[LayerGroup, ...]) -> int:
    return -(-widths.query // min(group.key_dim for group in groups))
