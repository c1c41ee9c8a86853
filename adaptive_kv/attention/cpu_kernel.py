"""The fused decode kernel for CPU, in Numba: one layer, all rows that decode a single token.

    each (row, kv head):   for each page:  scores [group, tokens] -> rescale -> accumulate

Packed pages are never unpacked to memory: the scale of a key channel is folded into the query, the
scale of a value into its weight. Softmax runs online (Milakov and Gimelshein, arXiv 1805.02867), so
formats may follow each other in any order.

Loops are written for the vectors that LLVM makes of them: flat or long enough, and with unsigned
indices where a sum of two could be negative as far as it knows.

Page layouts are those drawn in `cache/formats`; this file and they change together.
"""

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from adaptive_kv.cache.geometry import BLOCK_TOKENS

_INT8_TOKENS = BLOCK_TOKENS // 2
_FULL_TOKENS = BLOCK_TOKENS // 8  # in float32, the only type served here
_RUN_PAGES = BLOCK_TOKENS // _FULL_TOKENS
"""So many full pages are weighed together: a softmax has its price, however few its tokens."""

_HIDDEN = np.float32(-1e30)
"""The score of what is not seen. Not -inf: fast arithmetic may assume that there is none."""

_LINE_BYTES = 64

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def _compiled(**options: bool) -> Callable[[Callable[..., Any]], Any]:
    """Compile at first use and keep the result on disk, where there is a place for it."""

    def decorate(function: Callable[..., Any]) -> Any:
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


def can_widen_half() -> bool:
    """Whether this processor turns half precision into single by an instruction of its own."""
    is_x86 = platform.machine() in {"x86_64", "AMD64"}
    return not is_x86 or bool(get_host_cpu_features().get("f16c", False))


@intrinsic
def _half(typing_context: Any, bits: Any) -> Any:  # noqa: ARG001 - Numba's signature
    """A float16, given as its bits, as float32: Numba has no half precision on CPU."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@_compiled()
def _fetch(at: int, num_bytes: int) -> None:
    """Ask for bytes that will be read soon: no hardware foresees where the next page lies."""
    for line in range(at, at + num_bytes, _LINE_BYTES):
        _fetch_line(line)


@_compiled(fastmath=True)
def _score(
    scores: Floats, place: int, queries: Floats, heads: Any, keys: Floats, num: int, channel: int
) -> None:
    """Add the products of `num` keys and a kv head's queries, from `channel` on; eight at once.

    The scores of the first key are at `place`.
    """
    whole = num - num % 8
    for g in range(heads[0], heads[1]):
        for t in range(0, whole, 8):
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
            for d in range(keys.shape[1]):
                query = queries[g, np.uint64(channel + d)]
                s0 += query * keys[t, d]
                s1 += query * keys[t + 1, d]
                s2 += query * keys[t + 2, d]
                s3 += query * keys[t + 3, d]
                s4 += query * keys[t + 4, d]
                s5 += query * keys[t + 5, d]
                s6 += query * keys[t + 6, d]
                s7 += query * keys[t + 7, d]
            at = np.uint64(place + t)
            scores[g, at] += s0
            scores[g, at + 1] += s1
            scores[g, at + 2] += s2
            scores[g, at + 3] += s3
            scores[g, at + 4] += s4
            scores[g, at + 5] += s5
            scores[g, at + 6] += s6
            scores[g, at + 7] += s7
        for t in range(whole, num):
            total = np.float32(0)
            for d in range(keys.shape[1]):
                total += queries[g, np.uint64(channel + d)] * keys[t, d]
            scores[g, np.uint64(place + t)] += total


@_compiled(fastmath=True)
def _add(
    acc: Floats, weights: Floats, place: int, heads: Any, values: Floats, num: int, channel: int
) -> None:
    """Add `num` weighted values to a kv head's sums, from `channel` on; eight at once.

    The weights of the first value are at `place`.
    """
    whole = num - num % 8
    for g in range(heads[0], heads[1]):
        for t in range(0, whole, 8):
            at = np.uint64(place + t)
            w0, w1 = weights[g, at], weights[g, at + 1]
            w2, w3 = weights[g, at + 2], weights[g, at + 3]
            w4, w5 = weights[g, at + 4], weights[g, at + 5]
            w6, w7 = weights[g, at + 6], weights[g, at + 7]
            for d in range(values.shape[1]):
                acc[g, np.uint64(channel + d)] += (
                    w0 * values[t, d]
                    + w1 * values[t + 1, d]
                    + w2 * values[t + 2, d]
                    + w3 * values[t + 3, d]
                    + w4 * values[t + 4, d]
                    + w5 * values[t + 5, d]
                    + w6 * values[t + 6, d]
                    + w7 * values[t + 7, d]
                )
        for t in range(whole, num):
            weight = weights[g, np.uint64(place + t)]
            for d in range(values.shape[1]):
                acc[g, np.uint64(channel + d)] += weight * values[t, d]


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
def _widen(wide: Floats, scale: Any, minimum: Any) -> None:
    """Scales and minima as float32."""
    for i in range(scale.shape[0]):
        wide[0, i] = _half(scale[i])
    for i in range(minimum.shape[0]):
        wide[1, i] = _half(minimum[i])


@_compiled(fastmath=True)
def _fold_keys(
    folded: Floats, scores: Floats, queries: Floats, heads: Any, wide: Floats, num: int
) -> None:
    """Fold the channels' scales into the queries; the minima's share begins the scores."""
    for g in range(heads[0], heads[1]):
        offset = np.float32(0)
        for d in range(queries.shape[1]):
            folded[g, d] = queries[g, d] * wide[0, d]
            offset += queries[g, d] * wide[1, d]
        for t in range(num):
            scores[g, t] = offset


@_compiled(fastmath=True)
def _fold_values(acc: Floats, weights: Floats, heads: Any, wide: Floats, num: int) -> None:
    """A token's scale goes into its weight, its minimum to all channels."""
    for g in range(heads[0], heads[1]):
        offset = np.float32(0)
        for t in range(num):
            offset += weights[g, t] * wide[1, t]
            weights[g, t] *= wide[0, t]
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
def _exponentiate(scores: Floats, num: int, top: float) -> np.float32:
    """Turn the first `num` scores `x` into `exp(x - top)`; returns their sum.

    Numba calls the C library for one number at a time; this is 18 times as fast, because it becomes
    vectors. Cephes' expf (Moshier): `2**n * exp(r)` with `r` within half a `ln 2`, relative error
    3e-7.
    """
    total = np.float32(0)
    for t in range(num):
        x = max(scores[t] - top, np.float32(-87))  # below it the result would be denormal
        n = np.rint(x * np.float32(1.44269504))
        r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
        p = np.float32(1.9875691500e-4)
        p = p * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + np.float32(5.0000001201e-1)
        p = p * r * r + r + np.float32(1)
        power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
        scores[t] = p * power
        total += p * power
    return total


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
        total[g] += _exponentiate(scores[g], num, new_top)


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


@_compiled()
def _run_stop(pages: Integers, first: int, last: int, position: int) -> int:
    """Where the run of pages from `first` on ends that are weighed together: full, adjacent."""
    stop = first + 1
    while (
        stop < min(first + _RUN_PAGES, last)
        and pages[first, 2] == 32
        and pages[stop, 2] == 32
        and pages[stop, 3] == pages[stop - 1, 3] + _FULL_TOKENS
        and pages[stop, 3] < position
    ):
        stop += 1
    return stop


@_compiled(fastmath=True)
def _read_full(
    work: Any, pages: Integers, run: Any, offset: int, num: int, sizes: Any, view: Any, cap: float
) -> None:
    """Attend to `num` tokens of a run of pages as the model made them; `offset` finds the layer.

    While keys are read the same page's values are fetched, and meanwhile the next run's keys.
    """
    queries, _, _, _, _, scores, top, total, acc = work
    num_heads, group, size, kd, vd = sizes
    first, stop, last = run
    key_bytes, value_bytes = size * kd * 4, size * vd * 4
    scores[:, :num] = 0
    for p in range(first, stop):
        place = (p - first) * size
        for h in range(num_heads):
            at = pages[p, 0] + offset
            _fetch(at + num_heads * key_bytes + h * value_bytes, value_bytes)
            keys = carray(_pointer(at + h * key_bytes), (size, kd), np.float32)
            heads = (h * group, (h + 1) * group)
            _score(scores, place, queries, heads, keys, min(size, num - place), 0)
    _weigh(scores, num, view, cap, top, total, acc)
    for p in range(first, stop):
        place, ahead = (p - first) * size, min(p + stop - first, last - 1)
        for h in range(num_heads):
            _fetch(pages[ahead, 0] + offset + h * key_bytes, key_bytes)
            at = pages[p, 0] + offset + num_heads * key_bytes + h * value_bytes
            values = carray(_pointer(at), (size, vd), np.float32)
            heads = (h * group, (h + 1) * group)
            _add(acc, scores, place, heads, values, min(size, num - place), 0)


@_compiled(fastmath=True)
def _read_packed(
    work: Any, at: int, side: int, ahead: int, num: int, sizes: Any, view: Any, cap: float
) -> None:
    """Attend to a packed page: codes at `at`, scales and minima at `side`; `ahead` is read next."""
    plain, rotated, folded, wide, parts, scores, top, total, acc = work
    num_heads, group, size, kd, vd = sizes
    bits = 8 if size == _INT8_TOKENS else 4
    queries = plain if bits == 8 else rotated
    width, value_bytes = kd * bits // 8, size * vd * bits // 8
    for h in range(num_heads):
        _fetch(at + num_heads * size * width + h * value_bytes, value_bytes)
        heads = (h * group, (h + 1) * group)
        scale = carray(_pointer(side + h * kd * 2), kd, np.uint16)
        minimum = carray(_pointer(side + (num_heads + h) * kd * 2), kd, np.uint16)
        _widen(wide, scale, minimum)
        _fold_keys(folded, scores, queries, heads, wide, num)
        codes = carray(_pointer(at + h * size * width), size * width, np.uint8)
        _expand(parts, codes, num * width, bits)
        for part in range(8 // bits):
            keys = carray(_pointer(parts[part].ctypes.data), (size, width), np.float32)
            _score(scores, 0, folded, heads, keys, num, part * width)
    _weigh(scores, num, view, cap, top, total, acc)
    at += num_heads * size * width
    side += num_heads * kd * 4
    key_bytes, width = size * width, vd * bits // 8
    for h in range(num_heads):
        _fetch(ahead + h * key_bytes, key_bytes)
        heads = (h * group, (h + 1) * group)
        scale = carray(_pointer(side + h * size * 2), size, np.uint16)
        minimum = carray(_pointer(side + (num_heads + h) * size * 2), size, np.uint16)
        _widen(wide, scale, minimum)
        _fold_values(acc, scores, heads, wide, num)
        codes = carray(_pointer(at + h * size * width), size * width, np.uint8)
        _expand(parts, codes, num * width, bits)
        for part in range(8 // bits):
            values = carray(_pointer(parts[part].ctypes.data), (size, width), np.float32)
            _add(acc, scores, 0, heads, values, num, part * width)


@_compiled()
def _keep(
    pages: Integers, position: int, offset: int, sizes: Any, keys: Floats, values: Floats
) -> None:
    """Write the new token's keys and values `[kv_heads, dim]` into its slot of a full page."""
    num_heads, _, size, kd, vd = sizes
    last = len(pages) - 1
    while pages[last, 3] > position:
        last -= 1
    at, slot = pages[last, 0] + offset, position - pages[last, 3]
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
    rows: Integers,
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
    wide = np.empty((2, max(kd, BLOCK_TOKENS)), np.float32)
    parts = np.empty((2, _INT8_TOKENS * max(kd, vd)), np.float32)
    top, total = np.empty(num_queries, np.float32), np.empty(num_queries, np.float32)
    acc = np.empty((num_queries, vd), np.float32)
    for token, position, window, table, last in rows:
        pages = carray(_pointer(table), (last, 4), np.int64)
        plain, turned = queries[token] * scaling, rotated[token] * scaling
        work = (plain, turned, folded, wide, parts, scores, top, total, acc)
        scores[:, :1], top[:], total[:], acc[:] = 0, _HIDDEN, 0, 0
        for h in range(num_heads):  # the new token itself is always seen
            own = keys[token, h : h + 1]
            _score(scores, 0, plain, (h * group, (h + 1) * group), own, 1, 0)
        _weigh(scores, 1, (position, 0, 0, 0), softcap, top, total, acc)
        for h in range(num_heads):
            own = values[token, h : h + 1]
            _add(acc, scores, 0, (h * group, (h + 1) * group), own, 1, 0)
        sizes = (num_heads, group, _FULL_TOKENS, kd, vd)
        offset = place * num_heads * (kd + vd) * _FULL_TOKENS * 4
        _keep(pages, position, offset, sizes, keys[token], values[token])
        own_from, from_ = position - own_window + 1, position - window + 1
        p = 0
        while p < last:
            address, side, bits, start = pages[p]
            stop = _run_stop(pages, p, last, position)
            size = _FULL_TOKENS if bits == 32 else _INT8_TOKENS if bits == 8 else BLOCK_TOKENS
            num = min((stop - p) * size, position - start)
            sizes, view = (num_heads, group, size, kd, vd), (start, own_from, from_, sinks)
            is_hidden = start + num <= own_from or (start >= sinks and start + num <= from_)
            if num > 0 and not is_hidden:
                if bits == 32:
                    _read_full(work, pages, (p, stop, last), offset, num, sizes, view, softcap)
                else:
                    side += place * num_heads * (kd + BLOCK_TOKENS) * 4
                    ahead = pages[min(stop, last - 1), 0] + offset
                    _read_packed(work, address + offset, side, ahead, num, sizes, view, softcap)
            p = stop
        for g in range(num_queries):
            if sink_logits.size > 0:
                total[g] += np.exp(sink_logits[g] - top[g])
            for d in range(vd):
                out[token, g, d] = acc[g, d] / total[g]
