"""Converting pages on a GPU; the host's half of `gpu_kernel`."""

import functools
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_kv.cache.formats import triton_here
from adaptive_kv.cache.formats.lines import BITS_AT, Lines
from adaptive_kv.cache.geometry import LayerGroup
from adaptive_kv.sending import to_device

_MAX_DIM = 128
"""Tiles of larger heads do not stay in registers."""
_MIN_HALF = 16
"""Columns of the smallest product that a tensor core takes."""


def can_convert(group: LayerGroup, sources: Lines, device: torch.device) -> bool:
    """Whether the kernel makes pages of this group of such pages: all of one format."""
    is_one_format = bool((sources[:, BITS_AT] == sources[0, BITS_AT]).all())
    return is_one_format and triton_here.can_handle(group, device, _MAX_DIM)


def convert(
    group: LayerGroup,
    sources: Lines,
    targets: Lines,
    pages_per_slab: tuple[int, int],
    device: torch.device,
) -> None:
    """Fill pages with what others hold, every layer and head; `pages_per_slab` also of scales.

    Pages are all of one format on either side, not the same, and follow each other.
    """
    source_bits, target_bits = int(sources[0, BITS_AT]), int(targets[0, BITS_AT])
    num_tokens = len(targets) * 256 // target_bits
    num_tiles = num_tokens // convert_options(group, source_bits, target_bits)["tokens"]
    lines = np.delete(np.concatenate([sources, targets]), BITS_AT, axis=1)
    sent = to_device(lines, device, torch.int64)
    some = sent[: len(sources)], sent[len(sources) :]
    _start(group, num_tiles, *some, pages_per_slab, source_bits, target_bits)


@functools.cache
def load_converters(group: LayerGroup, device: torch.device) -> None:
    """Have everything compiled and on the device that `convert` may want."""
    if triton_here.can_handle(group, device, _MAX_DIM):
        nothing = torch.empty(0, 5, dtype=torch.int64, device=device)
        for bits in itertools.permutations((group.full_bits, 8, 4), 2):
            _start(group, 0, nothing, nothing, (0, 0), *bits)


def _start(
    group: LayerGroup,
    num_tiles: int,
    sources: Tensor,
    targets: Tensor,
    pages_per_slab: tuple[int, int],
    source_bits: int,
    target_bits: int,
) -> None:
    options = convert_options(group, source_bits, target_bits)
    _kernel()[num_tiles, group.num_layers, group.num_kv_heads](
        sources, targets, group.num_kv_heads, *pages_per_slab, *pages_per_slab, **options
    )


@functools.cache
def convert_options(group: LayerGroup, source_bits: int, target_bits: int) -> dict[str, Any]:
    """What the kernel is compiled for."""
    # Packing needs a whole page at a time, unpacking a whole set of scales.
    tokens = 256 // (target_bits if target_bits <= 8 else source_bits)
    return {
        **shape_options(group),
        "dtype": triton_here.type_of(group.dtype),
        "source_bits": source_bits,
        "target_bits": target_bits,
        "tokens": tokens,
        "num_warps": 8 if tokens == 64 else 4,
        "enable_fp_fusion": False,  # products and sums are rounded as torch rounds them
    }


def shape_options(group: LayerGroup) -> dict[str, Any]:
    """What every kernel over pages of a group is compiled for."""
    return {
        "dot": dot_type(group.dtype),
        "key_dim": group.key_dim,
        "value_dim": group.value_dim,
        "key_half": _half_room(group.key_dim),
        "value_half": _half_room(group.value_dim),
        "rotated": group.key_dim & -group.key_dim,
    }


def _half_room(dim: int) -> int:
    """Columns of a tile that holds half a head."""
    return max(_MIN_HALF, power_of_two(dim // 2))


def power_of_two(number: int) -> int:
    """The next one that is not below."""
    return 1 << (number - 1).bit_length()


def dot_type(dtype: torch.dtype) -> Any:
    """The type in which rows of `dtype` are multiplied; the interpreter has no bfloat16."""
    if dtype == torch.bfloat16 and triton_here.is_interpreted():
        dtype = torch.float32
    return triton_here.type_of(dtype)


@functools.cache
def _kernel() -> Any:
    from adaptive_kv.cache.formats import gpu_kernel  # noqa: PLC0415 - loads Triton

    return gpu_kernel.convert
