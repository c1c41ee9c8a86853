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
from adaptive_kv.cache.geometry import LayerGroup


class Int4(Packed):
    """Half a byte per element, keys rotated."""

    name = "int4"
    bits = 4

    def __init__(self, group: LayerGroup) -> None:
        super().__init__(group)
        self._rotation_size = group.key_dim & -group.key_dim  # largest power of two that divides

    def _rotate(self, keys: Tensor) -> Tensor:
        size = self._rotation_size
        return torch.matmul(keys.unflatten(-1, (-1, size)), hadamard(size, keys.device)).flatten(-2)

    def _unrotate(self, keys: Tensor) -> Tensor:
        return self._rotate(keys)  # symmetric and orthonormal: its own inverse

    def _pack(self, codes: Tensor) -> Tensor:
        low, high = codes.chunk(2, dim=-1)
        return low | (high << 4)

    def _unpack(self, codes: Tensor) -> Tensor:
        return torch.cat([codes & 0xF, codes >> 4], dim=-1)


@functools.cache
def hadamard(size: int, device: torch.device) -> Tensor:
    """Sylvester's orthonormal Hadamard matrix, float32 `[size, size]`; `size` a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return torch.mul(matrix, size**-0.5).to(device)
