"""Modes `window:N`, `window:N+int8`, `window:N+int4`: the sinks and the newest N tokens.

What a query may see is decided token by token (`is_visible`); what is dropped goes in whole
blocks once no later query can see any of it. Keys keep their true positions, so attention equals
that of a model masked the same way, and nothing is rotated again.

The model's own sliding windows drop blocks by the same rule, sinks included, in every mode.
"""

import torch
from torch import Tensor

from adaptive_kv.cache.geometry import BLOCK_TOKENS, Keep
from adaptive_kv.cache.span import Span, drop

DISTANCES = 2**17
"""So many distances (8 bytes each) are computed at a time; what is kept of each is one byte."""


def without_old(spans: list[Span], num_tokens: int, keep: Keep, window: int) -> list[Span]:
    """Drop the blocks between the sinks and the window of the next query."""
    return drop(spans, keep.sinks, kept_from(num_tokens, keep, window))


def without_unseen(spans: list[Span], num_tokens: int, keep: Keep, window: int) -> list[Span]:
    """Drop the blocks before the model's own window of the next query, the sinks too."""
    return drop(spans, 0, unseen_until(num_tokens, keep, window))


def is_visible(
    queries: Tensor, keys: Tensor, *, window: int | None, sinks: int, own_window: int | None
) -> Tensor:
    """Which keys each query may see, bool `[queries, keys]`, from their positions (int64).

    Causal; within `own_window` (the model's) and within `window` (the mode's) or a sink.
    """
    visible = torch.empty(len(queries), len(keys), dtype=torch.bool, device=keys.device)
    rows = max(1, DISTANCES // max(1, len(keys)))
    for some, answer in zip(queries.split(rows), visible.split(rows), strict=True):
        answer.copy_(_is_visible(some, keys, window, sinks, own_window))
    return visible


def _is_visible(
    queries: Tensor, keys: Tensor, window: int | None, sinks: int, own_window: int | None
) -> Tensor:
    distance = queries[:, None] - keys[None, :]
    visible = distance >= 0
    if own_window is not None:
        visible &= distance < own_window
    if window is not None:
        visible &= (distance < window) | (keys < sinks)
    return visible


def hides_any(window: int | None, num_tokens: int, sinks: int) -> bool:
    """Whether a window keeps the last of `num_tokens` tokens from seeing an earlier one."""
    return window is not None and num_tokens - window > sinks


def unseen_until(num_tokens: int, keep: Keep, window: int) -> int:
    """Where the tokens end that the model's own window hides from the query at `num_tokens`."""
    are_sinks_seen = num_tokens - window + 1 < keep.sinks
    return 0 if are_sinks_seen else kept_from(num_tokens, keep, window)


def kept_from(num_tokens: int, keep: Keep, window: int) -> int:
    """The block border before the first token that the query at `num_tokens` sees."""
    first_seen = num_tokens - window + 1
    blocks = max(0, first_seen - keep.sinks) // BLOCK_TOKENS
    return keep.sinks + blocks * BLOCK_TOKENS
