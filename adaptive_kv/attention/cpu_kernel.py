"""The fused decode kernel for CPU, in Numba: one layer, all rows that decode a single token.

    each (row, kv head):   for each page:  scores [group, tokens] -> rescale -> accumulate

Packed pages are never unpacked to memory: the scale of a key channel is folded into the query, the
scale of a value into its weight. Softmax runs online (Milakov and Gimelshein, arXiv 1805.02867), so
formats may follow each other in any order.

Loops are written for the vectors that LLVM makes of them: flat or long enough, and with unsigned
indices where a sum of two could be negative as far as it knows.

Page layouts are those drawn in `cache/formats`; this file and they change together.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from adaptive_kv.cache.geometry import BLOCK_TOKENS

_INT8_TOKENS = BLOCK_TOKENS // 2
_FULL_TOKENS = BLOCK_TOKENS // 8  # in float32, the only type served here
_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""float16 by its bits: Numba has no half precision on CPU."""

_HIDDEN = np.float32(-1e30)
"""The score of what is not seen. Not -inf: fast arithmetic may assume that there is none."""

_LINE_BYTES = 64

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def _compiled(**options: bool) -> Callable[[Callable[..., None]], Any]:
    """Compile at first use and keep the result on disk, where there is a place for it."""

    def decorate(function: Callable[..., None]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # Numba found no folder it may write to
            return njit(**options)(function)

    return decorate


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:  # noqa: ARG001 - Numba's signature
    """An integer address as a pointer that `carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def _fetch_line(typing_context: Any, address: Any) -> Any:  # noqa: ARG001 - Numba's signature
    """Ask for the cache line at an address, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        to_read, to_keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        pointer = builder.inttoptr(args[0], cgutils.voidptr_t)
        builder.call(prefetch, (pointer, to_read, to_keep, data))
        return context.get_dummy_value()

    return types.none(types.int64), generate


@_compiled()
def _fetch(at: int, num_bytes: int) -> None:
    """Ask for bytes that will be read soon: no hardware foresees where the next page lies."""
    for line in range(at, at + num_bytes, _LINE_BYTES):
        _fetch_line(line)


@_compiled(fastmath=True)
def _score(
    scores: Floats, queries: Floats, heads: Any, keys: Floats, num: int, channel: int
) -> None:
    """Add the products of `num` keys and a kv head's queries, from `channel` on; four at once."""
    whole = num - num % 4
    for g in range(heads[0], heads[1]):
        for t in range(0, whole, 4):
            one, two = scores[g, t], scores[g, t + 1]
            three, four = scores[g, t + 2], scores[g, t + 3]
            for d in range(keys.shape[1]):
                query = queries[g, np.uint64(channel + d)]
                one += query * keys[t, d]
                two += query * keys[t + 1, d]
                three += query * keys[t + 2, d]
                four += query * keys[t + 3, d]
            scores[g, t], scores[g, t + 1] = one, two
            scores[g, t + 2], scores[g, t + 3] = three, four
        for t in range(whole, num):
            total = scores[g, t]
            for d in range(keys.shape[1]):
                total += queries[g, np.uint64(channel + d)] * keys[t, d]
            scores[g, t] = total


@_compiled(fastmath=True)
def _add(acc: Floats, weights: Floats, heads: Any, values: Floats, num: int, channel: int) -> None:
    """Add `num` weighted values to a kv head's sums, from `channel` on; four at once."""
    whole = num - num % 4
    for g in range(heads[0], heads[1]):
        for t in range(0, whole, 4):
            one, two = weights[g, t], weights[g, t + 1]
            three, four = weights[g, t + 2], weights[g, t + 3]
            for d in range(values.shape[1]):
                acc[g, np.uint64(channel + d)] += (
                    one * values[t, d]
                    + two * values[t + 1, d]
                    + three * values[t + 2, d]
                    + four * values[t + 3, d]
                )
        for t in range(whole, num):
            for d in range(values.shape[1]):
                acc[g, np.uint64(channel + d)] += weights[g, t] * values[t, d]


@_compiled(fastmath=True)
def _expand(parts: Floats, codes: Any, num: int, bits: int) -> None:
    """Codes as float32: a byte each, or the two halves of the head, apart, from one byte.

    Both sides are flat: loops that only cover one token are too short to become vectors.
    """
    if bits == 8:
        for i in range(num):
            parts[0, i] = np.float32(codes[i])
    else:
        for i in range(num):
            parts[0, i] = np.float32(codes[i] & 15)
        for i in range(num):
            parts[1, i] = np.float32(codes[i] >> 4)


@_compiled(fastmath=True)
def _fold_keys(
    folded: Floats, scores: Floats, queries: Floats, heads: Any, scale: Any, minimum: Any, num: int
) -> None:
    """Fold the channels' scales into the queries; the minima's share begins the scores."""
    for g in range(heads[0], heads[1]):
        offset = np.float32(0)
        for d in range(queries.shape[1]):
            folded[g, d] = queries[g, d] * _HALF[scale[d]]
            offset += queries[g, d] * _HALF[minimum[d]]
        for t in range(num):
            scores[g, t] = offset


@_compiled(fastmath=True)
def _fold_values(
    acc: Floats, weights: Floats, heads: Any, scale: Any, minimum: Any, num: int
) -> None:
    """A token's scale goes into its weight, its minimum to all channels."""
    for g in range(heads[0], heads[1]):
        offset = np.float32(0)
        for t in range(num):
            offset += weights[g, t] * _HALF[minimum[t]]
            weights[g, t] *= _HALF[scale[t]]
        for d in range(acc.shape[1]):
            acc[g, d] += offset


@_compiled(fastmath=True)
def _cap(scores: Floats, num: int, softcap: float) -> None:
    for g in range(scores.shape[0]):
        for t in range(num):
            scores[g, t] = np.tanh(scores[g, t] / softcap) * softcap


@_compiled()
def _hide(scores: Floats, start: int, num: int, own_from: int, from_: int, sinks: int) -> None:
    """Hide tokens before the model's window, and those between the sinks and the mode's."""
    for t in range(num):
        position = start + t
        if position < own_from or sinks <= position < from_:
            for g in range(scores.shape[0]):
                scores[g, t] = _HIDDEN


@_compiled(fastmath=True)
def _soften(scores: Floats, num: int, top: Floats, total: Floats, acc: Floats) -> None:
    """Turn scores into weights against the highest so far; rescale what was summed before."""
    for g in range(scores.shape[0]):
        new_top = top[g]
        for t in range(num):
            new_top = max(new_top, scores[g, t])
        if new_top > top[g]:
            shrink = np.exp(top[g] - new_top)
            top[g] = new_top
            total[g] *= shrink
            for d in range(acc.shape[1]):
                acc[g, d] *= shrink
        for t in range(num):
            scores[g, t] = np.exp(scores[g, t] - new_top)
            total[g] += scores[g, t]


@_compiled(fastmath=True)
def _weigh(
    scores: Floats, num: int, view: Any, softcap: float, top: Floats, total: Floats, acc: Floats
) -> None:
    """From raw scores to weights."""
    start, own_from, from_, sinks = view
    if softcap > 0:
        _cap(scores, num, softcap)
    if start < own_from or (start < from_ and start + num > sinks):
        _hide(scores, start, num, own_from, from_, sinks)
    _soften(scores, num, top, total, acc)


@_compiled(fastmath=True)
def _read_full(work: Any, at: int, num: int, sizes: Any, view: Any, softcap: float) -> None:
    """Attend to a page as the model made it."""
    queries, _, _, _, scores, top, total, acc = work
    num_heads, group, size, kd, vd = sizes
    scores[:, :num] = 0
    for h in range(num_heads):
        keys = carray(_pointer(at + h * size * kd * 4), (size, kd), np.float32)
        _score(scores, queries, (h * group, (h + 1) * group), keys, num, 0)
    _weigh(scores, num, view, softcap, top, total, acc)
    at += num_heads * size * kd * 4
    for h in range(num_heads):
        values = carray(_pointer(at + h * size * vd * 4), (size, vd), np.float32)
        _add(acc, scores, (h * group, (h + 1) * group), values, num, 0)


@_compiled(fastmath=True)
def _read_packed(
    work: Any, at: int, side: int, num: int, sizes: Any, view: Any, softcap: float
) -> None:
    """Attend to a packed page: codes at `at`, scales and minima at `side`."""
    plain, rotated, folded, parts, scores, top, total, acc = work
    num_heads, group, size, kd, vd = sizes
    bits = 8 if size == _INT8_TOKENS else 4
    queries = plain if bits == 8 else rotated
    width = kd * bits // 8
    for h in range(num_heads):
        heads = (h * group, (h + 1) * group)
        scale = carray(_pointer(side + h * kd * 2), kd, np.uint16)
        minimum = carray(_pointer(side + (num_heads + h) * kd * 2), kd, np.uint16)
        _fold_keys(folded, scores, queries, heads, scale, minimum, num)
        codes = carray(_pointer(at + h * size * width), size * width, np.uint8)
        _expand(parts, codes, num * width, bits)
        for part in range(8 // bits):
            keys = carray(_pointer(parts[part].ctypes.data), (size, width), np.float32)
            _score(scores, folded, heads, keys, num, part * width)
    _weigh(scores, num, view, softcap, top, total, acc)
    at += num_heads * size * width
    side += num_heads * kd * 4
    width = vd * bits // 8
    for h in range(num_heads):
        heads = (h * group, (h + 1) * group)
        scale = carray(_pointer(side + h * size * 2), size, np.uint16)
        minimum = carray(_pointer(side + (num_heads + h) * size * 2), size, np.uint16)
        _fold_values(acc, scores, heads, scale, minimum, num)
        codes = carray(_pointer(at + h * size * width), size * width, np.uint8)
        _expand(parts, codes, num * width, bits)
        for part in range(8 // bits):
            values = carray(_pointer(parts[part].ctypes.data), (size, width), np.float32)
            _add(acc, scores, heads, values, num, part * width)


@_compiled()
def _keep(at: int, slot: int, sizes: Any, keys: Floats, values: Floats) -> None:
    """Write the new token's keys and values `[kv_heads, dim]` into its slot of a full page."""
    num_heads, _, size, kd, vd = sizes
    kept_keys = carray(_pointer(at), (num_heads, size, kd), np.float32)
    kept_values = carray(
        _pointer(at + num_heads * size * kd * 4), (num_heads, size, vd), np.float32
    )
    kept_keys[:, slot] = keys
    kept_values[:, slot] = values


@_compiled(nogil=True)
def decode(
    queries: Floats,
    rotated: Floats,
    keys: Floats,
    values: Floats,
    tokens: Integers,
    positions: Integers,
    windows: Integers,
    first: Integers,
    pages: Integers,
    place: int,
    sinks: int,
    own_window: int,
    scaling: float,
    softcap: float,
    sink_logits: Floats,
    out: Floats,
) -> None:
    """Attention of one layer into `out`, for the rows that `DecodeRows` describes."""
    num_queries, num_heads, kd, vd = queries.shape[1], keys.shape[1], keys.shape[2], values.shape[2]
    group = num_queries // num_heads
    scores = np.empty((num_queries, BLOCK_TOKENS), np.float32)
    folded = np.empty((num_queries, kd), np.float32)
    parts = np.empty((2, _INT8_TOKENS * max(kd, vd)), np.float32)
    top, total = np.empty(num_queries, np.float32), np.empty(num_queries, np.float32)
    acc = np.empty((num_queries, vd), np.float32)
    for r in range(len(tokens)):
        token, position = tokens[r], positions[r]
        plain, turned = queries[token] * scaling, rotated[token] * scaling
        work = (plain, turned, folded, parts, scores, top, total, acc)
        scores[:, :1], top[:], total[:], acc[:] = 0, _HIDDEN, 0, 0
        for h in range(num_heads):  # the new token itself is always seen
            own = keys[token, h : h + 1]
            _score(scores, plain, (h * group, (h + 1) * group), own, 1, 0)
        _weigh(scores, 1, (position, 0, 0, 0), softcap, top, total, acc)
        for h in range(num_heads):
            own = values[token, h : h + 1]
            _add(acc, scores, (h * group, (h + 1) * group), own, 1, 0)
        own_from, from_ = position - own_window + 1, position - windows[r] + 1
        for p in range(first[r], first[r + 1]):
            address, side, bits, start = pages[p]
            size = _FULL_TOKENS if bits == 32 else _INT8_TOKENS if bits == 8 else BLOCK_TOKENS
            layer_bytes = num_heads * (kd + vd) * size * bits // 8
            at = address + place * layer_bytes
            if p + 1 < first[r + 1]:
                _fetch(pages[p + 1, 0] + place * layer_bytes, layer_bytes)
            sizes, view = (num_heads, group, size, kd, vd), (start, own_from, from_, sinks)
            if start <= position < start + size:
                _keep(at, position - start, sizes, keys[token], values[token])
            num = min(size, position - start)
            if num <= 0 or start + num <= own_from or (start >= sinks and start + num <= from_):
                continue
            if bits == 32:
                _read_full(work, at, num, sizes, view, softcap)
            else:
                side += place * num_heads * (kd + BLOCK_TOKENS) * 4
                _read_packed(work, at, side, num, sizes, view, softcap)
        for g in range(num_queries):
            if sink_logits.size > 0:
                total[g] += np.exp(sink_logits[g] - top[g])
            for d in range(vd):
                out[token, g, d] = acc[g, d] / total[g]
