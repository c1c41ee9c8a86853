"""The product of a weight with few rows, in Numba: a linear layer while sequences decode.

Reading the weight once is nearly all that it takes. Torch hands it to routines for many rows, which
take longer to begin than a small weight takes to read. Each tile is so many sums in registers:

    weight  [out, in]    4 lines of it, a vector of each at a time, from where it lies
    hidden  [4, in]      4 rows, laid out so that the vectors of a place follow each other
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features
from numba import carray, types
from numba.extending import intrinsic
from torch import Tensor

from adaptive_kv.attention import cpu_loops, cpu_vectors
from adaptive_kv.attention.cpu_loops import kind_of
from adaptive_kv.attention.cpu_vectors import BYTES, Vectors
from adaptive_kv.cache.formats import cpu_words
from adaptive_kv.cache.formats.cpu import KEPT_AS, can_widen_half
from adaptive_kv.cache.formats.cpu_words import pointer
from adaptive_kv.jit import jit

MAX_ROWS = {torch.float32: 32, torch.bfloat16: 8, torch.float16: 8}
"""By the type of the weight: with more rows, routines for many are faster."""

_NUM_ROWS = 4
"""So many are multiplied at once, where there are several."""
_compiled = jit(sources=(cpu_loops, cpu_vectors, cpu_words), nogil=True)


def can_multiply(weight: Tensor) -> bool:
    """Whether `multiply` takes this weight `[out, in]`."""
    is_known = weight.dtype in KEPT_AS and can_widen_half()
    is_here = weight.device.type == "cpu" and weight.is_contiguous()
    return is_known and is_here and weight.shape[1] % 8 == 0


def multiply(weight: Tensor, hidden: Tensor) -> Tensor:
    """`weight` `[out, in]` times `hidden` `[..., in]`, as float32 `[..., out]`."""
    num_out, num_in = weight.shape
    num_rows = hidden.numel() // num_in
    num_at_once = 1 if num_rows == 1 else _NUM_ROWS
    num_padded = -(-num_rows // num_at_once) * num_at_once
    hidden = hidden.float().contiguous()
    packed = hidden if num_rows == 1 else torch.empty(num_padded, num_in)
    out = torch.empty(num_padded, num_out)
    kernel = _kernel(weight.dtype, _width(num_in), num_at_once)
    addresses = weight.data_ptr(), hidden.data_ptr(), packed.data_ptr(), out.data_ptr()
    kernel(*addresses, num_rows, num_in, num_out)
    rows = out if num_padded == num_rows else out[:num_rows]
    return rows.view(*hidden.shape[:-1], num_out)


@functools.cache
def _width(num_in: int) -> int:
    """Of the vectors."""
    is_wide = num_in % 16 == 0 and get_host_cpu_features().get("avx512f", False)
    return 16 if is_wide else 8


@intrinsic
def _tile(
    _context: Any,
    lanes: Any,
    rows: Any,
    outs: Any,
    mark: Any,
    weight: Any,
    packed: Any,
    out: Any,
    num_in: Any,
    num_out: Any,
) -> Any:
    """Write a tile of `out` `[rows, outs]`; what follows in `weight` is asked for meanwhile."""
    kind = kind_of(mark)

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, len(lanes))
        weight, packed, out, num_in, num_out = args[4:]
        line_bytes = builder.mul(num_in, vectors.number(BYTES[kind]))
        lines = [vectors.at(weight, line_bytes, o) for o in range(len(outs))]
        sums = vectors.zeros(len(rows), len(outs))
        with vectors.loop(vectors.number(0), num_in, vectors.width) as place:
            at = [vectors.at(line, place, BYTES[kind]) for line in lines]
            for each in at:
                vectors.fetch(vectors.at(each, line_bytes, len(outs)))
            weights = [vectors.load(kind, each)[0] for each in at]
            for r in range(len(rows)):
                offset = vectors.at(vectors.number(4 * vectors.width * r), place, 4 * len(rows))
                (row,) = vectors.load("float32", vectors.at(packed, offset))
                for each, mine in zip(weights, sums[r], strict=True):
                    vectors.add_product(mine, row, each)
        for r in range(len(rows)):
            answer = vectors.sums([vectors.get(each) for each in sums[r]])
            vectors.store_first(answer, len(outs), vectors.at(out, num_out, 4 * r))
        return context.get_dummy_value()

    return types.none(lanes, rows, outs, mark, *[types.int64] * 5), generate


@_compiled
def _pack(lanes: Any, rows: Any, hidden: Any, packed: Any) -> None:
    """From `[rows, in]` to `[groups, in / lanes, rows, lanes]`; rows that are missing are zero."""
    for g in range(packed.shape[0]):
        for place in range(packed.shape[1]):
            for r in range(len(rows)):
                row = g * len(rows) + r
                for i in range(len(lanes)):
                    is_there = row < hidden.shape[0]
                    value = hidden[row, place * len(lanes) + i] if is_there else np.float32(0)
                    packed[g, place, r, i] = value


@functools.cache
def _kernel(dtype: torch.dtype, width: int, num_rows_at_once: int) -> Callable[..., None]:
    """For one kind of weight: what is constant costs nothing to hand over."""
    lanes, rows, outs, one = (0,) * width, (0,) * num_rows_at_once, (0,) * (width // 4), (0,)
    mark, itemsize = torch.zeros(1, dtype=KEPT_AS[dtype]).numpy()[0], dtype.itemsize

    @_compiled
    def run(
        weight: int,
        hidden: int,
        packed: int,
        out: int,
        num_rows: int,
        num_in: int,
        num_out: int,
    ) -> None:
        num_groups = (num_rows + len(rows) - 1) // len(rows)
        if hidden != packed:
            shape = num_groups, num_in // len(lanes), len(rows), len(lanes)
            there = carray(pointer(hidden), (num_rows, num_in), np.float32)
            _pack(lanes, rows, there, carray(pointer(packed), shape, np.float32))
        line_bytes, group_bytes = num_in * itemsize, 4 * num_in * len(rows)
        whole = num_out - num_out % len(outs)
        for o in range(0, whole, len(outs)):
            for g in range(num_groups):
                to = out + 4 * (o + g * len(rows) * num_out)
                line, some = weight + o * line_bytes, packed + g * group_bytes
                _tile(lanes, rows, outs, mark, line, some, to, num_in, num_out)
        for o in range(whole, num_out):
            for g in range(num_groups):
                to = out + 4 * (o + g * len(rows) * num_out)
                line, some = weight + o * line_bytes, packed + g * group_bytes
                _tile(lanes, rows, one, mark, line, some, to, num_in, num_out)

    return run  # type: ignore[no-any-return]
