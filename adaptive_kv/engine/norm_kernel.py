"""RMSNorm on a CPU in one pass, in Numba: torch's own is made of seven operators there."""

import numpy as np
import torch
from numba import carray
from torch import Tensor

from adaptive_kv.cache.formats.cpu_words import pointer
from adaptive_kv.jit import jit


def normalize(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`hidden` `[..., dim]` times float32 `weight` `[dim]`, over the root of its mean square."""
    rows = hidden.float().contiguous()
    out = torch.empty_like(rows)
    num_dims = len(weight)
    num_rows = rows.numel() // num_dims
    _normalize(rows.data_ptr(), weight.data_ptr(), out.data_ptr(), num_rows, num_dims, eps)
    return out.to(hidden.dtype)


@jit(nogil=True, fastmath={"reassoc", "contract"})
def _normalize(
    hidden: int, weight: int, out: int, num_rows: int, num_dims: int, eps: float
) -> None:
    rows = carray(pointer(hidden), (num_rows, num_dims), np.float32)
    factors = carray(pointer(weight), num_dims, np.float32)
    answers = carray(pointer(out), (num_rows, num_dims), np.float32)
    for r in range(num_rows):
        total = np.float32(0)
        for i in range(num_dims):
            total += rows[r, i] * rows[r, i]
        scale = np.float32(1 / np.sqrt(total / num_dims + eps))
        for i in range(num_dims):
            answers[r, i] = rows[r, i] * scale * factors[i]
