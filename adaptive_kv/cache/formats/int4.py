"""int4: a quarter of a 16-bit page.

Two codes share a byte by halves of the head's dimension (low nibble: first half), so that a
kernel multiplies each half without interleaving. Keys are rotated by a Hadamard matrix before
they are packed, which spreads outlier channels; full pages are never rotated, and a packed kernel
rotates its query instead.
"""

import functools

import torch
from torch import Tensor

from adaptive_kv.cache.formats.packed import Packed


class Int4(Packed):
    """Half a byte per element, keys rotated."""

    name = "int4"
    bits = 4

    def _rotate(self, keys: Tensor) -> Tensor:
        return rotate(keys)

    def _unrotate(self, keys: Tensor) -> Tensor:
        return rotate(keys)

    def _pack(self, codes: Tensor) -> Tensor:
        low, high = codes.chunk(2, dim=-1)
        return low | (high << 4)

    def _unpack(self, codes: Tensor) -> Tensor:
        return torch.cat([codes & 0xF, codes >> 4], dim=-1)


def rotate(rows: Tensor) -> Tensor:
    """Rotate the last dimension of float32 `rows`, in blocks of the largest power of two.

    The rotation is symmetric and orthonormal: it is its own inverse, and leaves dot products of
    two rotated rows as they were.
    """
    size = rows.shape[-1] & -rows.shape[-1]
    return torch.matmul(rows.unflatten(-1, (-1, size)), hadamard(size, rows.device)).flatten(-2)


@functools.cache
def hadamard(size: int, device: torch.device) -> Tensor:
    """Sylvester's orthonormal Hadamard matrix, float32 `[size, size]`; `size` a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return torch.mul(matrix, size**-0.5).to(device)
