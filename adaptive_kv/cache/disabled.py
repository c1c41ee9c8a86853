"""Mode `disabled`: nothing is kept between steps; every step runs the whole prefix. Exact.

Its price is compute and the activations of the whole prefix. The widest of those are the MLP's,
so the MLP is evaluated in chunks of tokens: `chunk_mlps` wraps it once, at load.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adaptive_kv.cache.span import Span

MLP_CHUNK_TOKENS = 1024
_MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe")


def plan(num_tokens: int) -> list[Span]:
    """Everything is dropped."""
    return [Span(0, num_tokens, None)]


class ChunkedMLP(nn.Module):
    """Evaluates `inner` (which treats every token alone) in chunks along dimension 1."""

    def __init__(self, inner: nn.Module, chunk_tokens: int = MLP_CHUNK_TOKENS) -> None:
        super().__init__()
        self.inner = inner
        self.chunk_tokens = chunk_tokens

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`inner`'s answer for `hidden` `[1, tokens, hidden_size]`."""
        if hidden.dim() < 3 or hidden.shape[1] <= self.chunk_tokens:
            return self.inner(hidden, *args, **kwargs)
        parts = [self.inner(part, *args, **kwargs) for part in hidden.split(self.chunk_tokens, 1)]
        if isinstance(parts[0], tuple):  # mixtures of experts also answer router logits per token
            return tuple(torch.cat(column, -2) for column in zip(*parts, strict=True))
        return torch.cat(parts, 1)


def chunk_mlps(model: nn.Module, chunk_tokens: int = MLP_CHUNK_TOKENS) -> int:
    """Wrap the MLP of every decoder layer in place; returns how many were wrapped."""
    layers = [m for m in model.modules() if hasattr(m, "self_attn") or hasattr(m, "attention")]
    num_wrapped = 0
    for layer in layers:
        for name in _MLP_NAMES:
            inner = getattr(layer, name, None)
            if isinstance(inner, nn.Module) and not isinstance(inner, ChunkedMLP):
                setattr(layer, name, ChunkedMLP(inner, chunk_tokens))
                num_wrapped += 1
    return num_wrapped
