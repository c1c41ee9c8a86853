"""Pages as kernels for CPUs find them, and what Numba has no types for: addresses, 16-bit numbers.

Elements of full pages go by the type that they are handed over as (`cpu.KEPT_AS`): `uint16` stands
for bfloat16, `int16` for float16.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from adaptive_kv.cache.geometry import BLOCK_TOKENS
from adaptive_kv.jit import jit

_FLOAT, _HALF, _WORD, _BITS = ir.FloatType(), ir.HalfType(), ir.IntType(16), ir.IntType(32)


@intrinsic
def pointer(_context: Any, address: Any) -> Any:
    """An integer address as a pointer that `carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@jit(inline="always")
def _pieces_at(place: int, h: int, num_heads: int, num_pages: int, key: int, value: int) -> Any:
    layer = place * num_heads * (key + value)
    return (layer + h * key) * num_pages, (layer + num_heads * key + h * value) * num_pages


@intrinsic
def widen(_context: Any, element: Any) -> Any:
    """The float32 that an element of a full page stands for."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if element == types.uint16:
            wide = builder.shl(builder.zext(args[0], _BITS), ir.Constant(_BITS, 16))
            return builder.bitcast(wide, _FLOAT)
        if element == types.int16:
            return builder.fpext(builder.bitcast(args[0], _HALF), _FLOAT)
        return args[0]

    return types.float32(element), generate


@intrinsic
def narrow(_context: Any, number: Any, element: Any) -> Any:
    """The nearest element to a float32, in the type of `element`; to the even one of two."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if element == types.uint16:
            bits = builder.bitcast(args[0], _BITS)
            last = builder.and_(builder.lshr(bits, ir.Constant(_BITS, 16)), ir.Constant(_BITS, 1))
            bits = builder.add(builder.add(bits, ir.Constant(_BITS, 0x7FFF)), last)
            return builder.trunc(builder.lshr(bits, ir.Constant(_BITS, 16)), _WORD)
        if element == types.int16:
            return builder.bitcast(builder.fptrunc(args[0], _HALF), _WORD)
        return args[0]

    return element(types.float32, element), generate


@jit(inline="always")
def pieces_at(place: int, h: int, num_heads: int, dims: Any, per_slab: Any) -> Any:
    """How far a head's pieces in a layer are from the addresses of a page and of its scales.

    As `Slab` draws it: those of keys, of values, of the scales of keys, of those of values. `dims`
    and `per_slab` are two each: of keys and values, and how many pages and scales a slab has.
    """
    rows = _pieces_at(place, h, num_heads, per_slab[0], 32 * dims[0], 32 * dims[1])
    return rows + _pieces_at(place, h, num_heads, per_slab[1], 4 * dims[0], 4 * BLOCK_TOKENS)
