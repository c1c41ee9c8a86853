"""Attention in plain torch: the oracle of every kernel, and what runs where no kernel does.

Grouped-query attention without repeating keys: the queries that share a key-value head are laid
side by side, so each head's keys are read once.

    queries [query_heads, n, d] -> [kv_heads, group * n, d]    scores [kv_heads, group * n, m]
"""

import torch
from torch import Tensor

from adaptive_kv.cache.costs import SCORE_BYTES


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scaling: float,
    visible: Tensor | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Softmax attention of one sequence, output `[query_heads, n, value_dim]`.

    `queries` `[query_heads, n, key_dim]`, `keys` `[kv_heads, m, key_dim]`, `values` `[kv_heads,
    m, value_dim]`, `visible` bool `[n, m]` or None where all is visible. Scores are float32 and
    computed for as many queries at a time as keeps them within `SCORE_BYTES`.
    """
    num_heads, num_queries, num_keys = queries.shape[0], queries.shape[1], keys.shape[1]
    rows = max(1, SCORE_BYTES // (4 * num_heads * max(1, num_keys)))
    parts = []
    for first in range(0, num_queries, rows):
        part = slice(first, first + rows)
        seen = None if visible is None else visible[part]
        parts.append(_attend(queries[:, part], keys, values, scaling, seen, softcap, sink_logits))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    visible: Tensor | None,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Tensor:
    num_heads, num_queries, _ = queries.shape
    kv_heads, num_keys, _ = keys.shape
    grouped = queries.reshape(kv_heads, -1, queries.shape[-1])
    scores = torch.matmul(grouped, keys.transpose(1, 2)).float().mul_(scaling)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    scores = scores.view(num_heads, num_queries, num_keys)
    if visible is not None:
        scores.masked_fill_(~visible, -torch.inf)
    weights = _softmax(scores, sink_logits).to(values.dtype)
    out = torch.matmul(weights.view(kv_heads, -1, num_keys), values)
    return out.view(num_heads, num_queries, -1)


def _softmax(scores: Tensor, sink_logits: Tensor | None) -> Tensor:
    if sink_logits is None:
        return scores.softmax(-1)
    sinks = sink_logits.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
