"""Vectors of floats, written out in the language of LLVM: the CPU kernel is made of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "int4": 1}
"""By kind of elements, what `Vectors.load` takes of memory for each lane."""

_FLOAT, _HALF, _ADDRESS = ir.FloatType(), ir.HalfType(), ir.IntType(64)
_EXP_FACTORS = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


class Vectors:
    """Writes operations on vectors of `width` floats into the function that is being compiled."""

    def __init__(self, builder: Any, width: int) -> None:
        self.width = width
        self._builder = builder
        self._type = ir.VectorType(_FLOAT, width)
        self._integers = ir.VectorType(ir.IntType(32), width)
        # What fits into the registers: so many sums at once.
        self.num_queries = {16: 4, 8: 2}[width]

    def number(self, value: int) -> Any:
        """A constant address or length."""
        return ir.Constant(_ADDRESS, value)

    def at(self, address: Any, offset: Any, factor: int = 1) -> Any:
        """`address` plus `factor` times `offset`."""
        step = self.number(offset) if isinstance(offset, int) else offset
        if factor != 1:
            step = self._builder.mul(step, self.number(factor))
        return self._builder.add(address, step)

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int) -> Iterator[Any]:
        """A loop over whole steps only."""
        with cgutils.for_range_slice(
            self._builder, start, stop, self.number(step), intp=_ADDRESS
        ) as (index, _):
            yield index

    def whole(self, length: Any, step: int) -> Any:
        """`length` less what does not fill a step."""
        return self._builder.sub(length, self._builder.urem(length, self.number(step)))

    def zeros(self, *shape: int) -> Any:
        """Nested lists of variables that begin as zero."""
        if shape:
            return [self.zeros(*shape[1:]) for _ in range(shape[0])]
        variable = cgutils.alloca_once(self._builder, self._type)
        self._builder.store(ir.Constant(self._type, [0.0] * self.width), variable)
        return variable

    def get(self, variable: Any) -> Any:
        """What a variable holds."""
        return self._builder.load(variable)

    def put(self, vector: Any, variable: Any) -> None:
        """Let a variable hold `vector`."""
        self._builder.store(vector, variable)

    def add_product(self, variable: Any, one: Any, other: Any) -> None:
        """Add the product of two vectors to a variable."""
        self.put(self.call("fma", one, other, self.get(variable)), variable)

    def exp(self, x: Any) -> Any:
        """`exp` of numbers up to 0, relative error 3e-7: Cephes' expf (Moshier).

        `2**n * exp(r)` with `r` within half a `ln 2`. Below -87 it would be denormal.
        """
        x = self.call("maxnum", x, self.constant(-87.0))
        n = self.call("rint", self._builder.fmul(x, self.constant(1.44269504)))
        r = self.call("fma", n, self.constant(-0.693359375), x)
        r = self.call("fma", n, self.constant(2.12194440e-4), r)
        p = self.constant(1.9875691500e-4)
        for factor in _EXP_FACTORS:
            p = self.call("fma", p, r, self.constant(factor))
        p = self.call("fma", self._builder.fmul(p, r), r, self._builder.fadd(r, self.constant(1.0)))
        whole = self._builder.add(self._builder.fptosi(n, self._integers), self._integer(127))
        power = self._builder.bitcast(self._builder.shl(whole, self._integer(23)), self._type)
        return self._builder.fmul(p, power)

    def constant(self, value: float) -> Any:
        """A number, in every lane."""
        return ir.Constant(self._type, [value] * self.width)

    def call(self, name: str, *vectors: Any) -> Any:
        """One of LLVM's own functions of vectors."""
        kind = ir.FunctionType(self._type, [self._type] * len(vectors))
        full_name = f"llvm.{name}.v{self.width}f32"
        function = cgutils.get_or_insert_function(self._builder.module, kind, full_name)
        return self._builder.call(function, vectors)

    def highest(self, vector: Any) -> Any:
        """The highest lane, in every lane."""
        return self._folded(vector, lambda one, other: self.call("maxnum", one, other))

    def total(self, vector: Any) -> Any:
        """The sum of all lanes, in every lane."""
        return self._folded(vector, self._builder.fadd)

    def store(self, vector: Any, address: Any) -> None:
        """Write a vector of any length to memory."""
        pointer = self._builder.inttoptr(address, vector.type.as_pointer())
        self._builder.store(vector, pointer, align=4)

    def store_first(self, vector: Any, num: int, address: Any) -> None:
        """Write the first `num` lanes of a vector to memory."""
        self.store(self._shuffle(vector, vector, range(num)), address)

    def spread(self, address: Any) -> Any:
        """The float at an address, in every lane."""
        pointer = self._builder.inttoptr(address, _FLOAT.as_pointer())
        undefined, first = ir.Constant(self._type, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        one = self._builder.insert_element(undefined, self._builder.load(pointer), first)
        return self._shuffle(one, one, [0] * self.width)

    def load(self, kind: str, address: Any) -> list[Any]:
        """What elements stand for, as floats; of int4 the low halves of bytes, then the high."""
        builder = self._builder
        if kind == "float32":
            return [self._raw(address, _FLOAT, 4)]
        if kind == "float16":
            return [builder.fpext(self._raw(address, _HALF, 2), self._type)]
        raw = self._raw(address, ir.IntType(8 * BYTES[kind]), BYTES[kind])
        wide = builder.zext(raw, self._integers)
        if kind == "bfloat16":
            return [builder.bitcast(builder.shl(wide, self._integer(16)), self._type)]
        if kind == "int8":
            return [builder.sitofp(wide, self._type)]
        halves = builder.and_(wide, self._integer(15)), builder.lshr(wide, self._integer(4))
        return [builder.sitofp(half, self._type) for half in halves]

    def fetch(self, address: Any) -> None:
        """Ask for the cache line at an address, without waiting for it."""
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        prefetch = cgutils.get_or_insert_function(self._builder.module, kind, "llvm.prefetch.p0i8")
        to_read, to_keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        pointer = self._builder.inttoptr(address, cgutils.voidptr_t)
        self._builder.call(prefetch, (pointer, to_read, to_keep, data))

    def sums(self, vectors: Sequence[Any]) -> Any:
        """A vector with the sum of each of 8 vectors, in a tree: three operations for each.

        Where there are fewer, the last sums are zero.

        a0 a1 a2 a3    b0 b1 b2 b3     ->     a0+a1 b0+b1 a2+a3 b2+b3     -> ...
        """
        vectors = [*vectors, *[self.constant(0.0)] * (8 - len(vectors))]
        stride, lanes = 1, range(self.width)
        while len(vectors) > 1:
            own = [
                lane if lane // stride % 2 == 0 else self.width + lane - stride for lane in lanes
            ]
            next_ = [place + stride for place in own]
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [
                self._builder.fadd(self._shuffle(*pair, own), self._shuffle(*pair, next_))
                for pair in pairs
            ]
            stride *= 2
        (last,) = vectors
        if stride == self.width:
            return last
        low, high = ([*range(first, first + stride)] for first in (0, stride))
        return self._builder.fadd(self._shuffle(last, last, low), self._shuffle(last, last, high))

    def _folded(self, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
        """All lanes joined, by halves."""
        step = self.width // 2
        while step:
            places = [lane ^ step for lane in range(self.width)]
            vector = join(vector, self._shuffle(vector, vector, places))
            step //= 2
        return vector

    def _integer(self, value: int) -> Any:
        return ir.Constant(self._integers, [value] * self.width)

    def _raw(self, address: Any, kind: Any, align: int) -> Any:
        pointer = self._builder.inttoptr(address, ir.VectorType(kind, self.width).as_pointer())
        return self._builder.load(pointer, align=align)

    def _shuffle(self, one: Any, other: Any, places: Sequence[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
        return self._builder.shuffle_vector(one, other, mask)
