"""What Numba has no types for: memory by its address, and numbers of 16 bits.

Elements of full pages go by the type that they are handed over as (`cpu.KEPT_AS`): `uint16` stands
for bfloat16, `int16` for float16.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FLOAT, _HALF, _WORD, _BITS = ir.FloatType(), ir.HalfType(), ir.IntType(16), ir.IntType(32)


@intrinsic
def pointer(_context: Any, address: Any) -> Any:
    """An integer address as a pointer that `carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


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
