"""Converting pages on a CPU; the host's half of `cpu_kernel`."""

import functools
import platform

import numpy as np
import torch

from adaptive_kv.cache.formats import triton_here
from adaptive_kv.cache.formats.int4 import rotate
from adaptive_kv.cache.formats.lines import BITS_AT, Lines, are_rotated
from adaptive_kv.cache.geometry import LayerGroup

KEPT_AS = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.uint16,
    torch.float16: torch.int16,
}
"""What the elements of full pages are handed over as: kernels tell 16-bit types by it."""


def can_convert(group: LayerGroup, sources: Lines, device: torch.device) -> bool:
    """Whether the kernel makes pages of this group of such pages: of those that are rotated, or of
    others. Kernels for GPUs go first where they pretend to have one."""
    rotated = are_rotated(sources)
    if rotated.any() and not rotated.all():
        return False
    is_known = group.dtype in KEPT_AS and group.key_dim % 2 == group.value_dim % 2 == 0
    is_here = device.type == "cpu" and not triton_here.is_interpreted()
    return is_known and is_here and can_widen_half()


@functools.cache
def can_widen_half() -> bool:
    """Whether this processor turns half precision into single by an instruction of its own."""
    from llvmlite.binding import get_host_cpu_features  # noqa: PLC0415 - part of Numba

    is_x86 = platform.machine() in {"x86_64", "AMD64"}
    return not is_x86 or bool(get_host_cpu_features().get("f16c", False))


def convert(
    group: LayerGroup, sources: Lines, targets: Lines, pages_per_slab: tuple[int, int]
) -> None:
    """Fill pages with what others hold, every layer and head; `pages_per_slab` also of scales.

    Targets are of one format and of as many tokens as sources, which are as `can_convert` wants.
    """
    from adaptive_kv.cache.formats import cpu_kernel  # noqa: PLC0415 - loads Numba, a while

    kind = torch.zeros(1, dtype=KEPT_AS[group.dtype]).numpy()
    num_tokens = int((256 // sources[:, BITS_AT]).sum())
    keys, values = (
        torch.empty(group.num_layers * group.num_kv_heads, num_tokens, dim)
        for dim in (group.key_dim, group.value_dim)
    )
    shape = group.num_kv_heads, pages_per_slab
    cpu_kernel.copy(kind, sources, *shape, keys.numpy(), values.numpy(), True)
    if are_rotated(sources).any():
        keys = rotate(keys)
    keys, values = (rows.to(group.dtype).float() for rows in (keys, values))
    if are_rotated(targets).any():
        keys = rotate(keys)
    cpu_kernel.copy(kind, targets, *shape, keys.numpy(), values.numpy(), False)


@functools.cache
def load_converters(group: LayerGroup) -> None:
    """Have everything compiled that `convert` may want: it takes seconds, once per box."""
    nothing = np.empty((0, 6), np.int64)
    convert(group, nothing, nothing, (0, 0))
