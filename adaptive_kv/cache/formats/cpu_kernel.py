"""Reading and writing pages on a CPU, in Numba: a block of them, in all layers at once.

    sources -> float32 keys and values, by layer and head: tokens, dims -> targets

Pages are read and written where they lie, through their addresses. Scales, minima and codes are
computed as `packed.Packed` does, operation by operation, and come out bit by bit the same; rotating
is left to torch, which adds up in an order of its own.

`kind` is an array of elements of full pages, `lines` are those of a `PageTable`. Page layouts are
those drawn beside the formats.
"""

from typing import Any

import numpy as np
from numba import carray

from adaptive_kv.cache.formats import cpu_words
from adaptive_kv.cache.formats.cpu_words import narrow, pieces_at, pointer, widen
from adaptive_kv.jit import jit

_LARGEST = np.float32(65504.0)
_HALF = np.int16(0)
"""Stands for half precision where an element's type is asked for."""

# No sum or product may be rounded in another way than torch does it; a range knows no order.
_compiled = jit(sources=[cpu_words], nogil=True, error_model="numpy", fastmath={"nnan", "nsz"})


@_compiled
def _half_below(number: Any) -> Any:
    """As `packed._half_below`: the next one down has the next pattern, below zero upwards."""
    near = narrow(number, _HALF)
    if widen(near) <= number:
        return near
    return np.int16(near - 1) if near > 0 else np.int16(near + 1)


@_compiled
def _scale_of(low: Any, high: Any, levels: Any, sides: Any, i: int) -> Any:
    """Note scale and minimum of a range as half precision; what these stand for."""
    low, high = min(max(low, -_LARGEST), _LARGEST), min(max(high, -_LARGEST), _LARGEST)
    sides[1, i] = _half_below(low)
    minimum = widen(sides[1, i])
    sides[0, i] = max(narrow((high - minimum) / levels, _HALF), np.int16(1))
    return widen(sides[0, i]), minimum


@_compiled
def _code(number: Any, scale: Any, minimum: Any, levels: Any) -> Any:
    return np.uint8(min(max(np.rint((number - minimum) / scale), np.float32(0)), levels))


@_compiled
def _quantize_keys(keys: Any, levels: Any, codes: Any, sides: Any) -> None:
    """One scale for each channel."""
    low, high = keys[0].copy(), keys[0].copy()
    for t in range(1, len(keys)):
        for d in range(len(low)):
            low[d], high[d] = min(low[d], keys[t, d]), max(high[d], keys[t, d])
    for d in range(len(low)):
        high[d], low[d] = _scale_of(low[d], high[d], levels, sides, d)
    for t in range(len(keys)):
        for d in range(len(low)):
            codes[t, d] = _code(keys[t, d], high[d], low[d], levels)


@_compiled
def _quantize_values(values: Any, levels: Any, codes: Any, sides: Any) -> None:
    """One scale for each token."""
    for t in range(len(values)):
        low = high = values[t, 0]
        for d in range(values.shape[1]):
            low, high = min(low, values[t, d]), max(high, values[t, d])
        scale, minimum = _scale_of(low, high, levels, sides, t)
        for d in range(values.shape[1]):
            codes[t, d] = _code(values[t, d], scale, minimum, levels)


@_compiled
def _dequantize(codes: Any, key_sides: Any, rows: Any, value_sides: Any, out: Any) -> None:
    """The opposite of both."""
    keys, values = out
    scales, minima = np.empty(keys.shape[1], np.float32), np.empty(keys.shape[1], np.float32)
    for d in range(len(scales)):
        scales[d], minima[d] = widen(key_sides[0, d]), widen(key_sides[1, d])
    for t in range(len(keys)):
        for d in range(len(scales)):
            keys[t, d] = np.float32(codes[t, d]) * scales[d] + minima[d]
        scale, minimum = widen(value_sides[0, t]), widen(value_sides[1, t])
        for d in range(values.shape[1]):
            values[t, d] = np.float32(rows[t, d]) * scale + minimum


@_compiled
def _transpose(rows: Any, columns: Any) -> None:
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            columns[j, i] = rows[i, j]


@_compiled
def _split(packed: Any, codes: Any) -> None:
    """Two codes of a byte belong to the halves of a row."""
    half = packed.shape[1]
    for i in range(packed.shape[0]):
        for j in range(half):
            codes[i, j], codes[i, half + j] = packed[i, j] & 15, packed[i, j] >> 4


@_compiled
def _join(codes: Any, packed: Any) -> None:
    half = packed.shape[1]
    for i in range(packed.shape[0]):
        for j in range(half):
            packed[i, j] = codes[i, j] | (codes[i, half + j] << 4)


@_compiled
def _read_packed(line: Any, at: Any, out: Any) -> None:
    """Into keys and values `out`."""
    keys, values = out
    (size, kd), vd, bits = keys.shape, values.shape[1], line[4]
    by_channel = carray(pointer(line[0] + at[0]), (kd, size), np.uint8)
    rows = carray(pointer(line[1] + at[1]), (size, vd), np.uint8)
    if bits == 4:
        by_channel, rows = np.empty((kd, size), np.uint8), np.empty((size, vd), np.uint8)
        packed = carray(pointer(line[0] + at[0]), (1, kd * size // 2), np.uint8)
        _split(packed, by_channel.reshape(1, -1))
        _split(carray(pointer(line[1] + at[1]), (size, vd // 2), np.uint8), rows)
    codes = np.empty((size, kd), np.uint8)
    _transpose(by_channel, codes)
    key_sides = carray(pointer(line[2] + at[2]), (2, kd), np.int16)
    value_sides = carray(pointer(line[3] + at[3]), (2, size), np.int16)
    _dequantize(codes, key_sides, rows, value_sides, out)


@_compiled
def _write_packed(line: Any, at: Any, rows: Any) -> None:
    keys, values = rows
    (size, kd), vd, bits = keys.shape, values.shape[1], line[4]
    codes, by_token = np.empty((size, kd), np.uint8), np.empty((size, vd), np.uint8)
    key_sides = carray(pointer(line[2] + at[2]), (2, kd), np.int16)
    value_sides = carray(pointer(line[3] + at[3]), (2, size), np.int16)
    levels = np.float32(2**bits - 1)
    _quantize_keys(keys, levels, codes, key_sides)
    by_channel = carray(pointer(line[0] + at[0]), (kd, size), np.uint8)
    if bits == 4:
        by_channel = np.empty((kd, size), np.uint8)
    else:
        by_token = carray(pointer(line[1] + at[1]), (size, vd), np.uint8)
    _transpose(codes, by_channel)
    _quantize_values(values, levels, by_token, value_sides)
    if bits == 4:
        packed = carray(pointer(line[0] + at[0]), (1, kd * size // 2), np.uint8)
        _join(by_channel.reshape(1, -1), packed)
        _join(by_token, carray(pointer(line[1] + at[1]), (size, vd // 2), np.uint8))


@_compiled
def _copy_full(kind: Any, line: Any, at: Any, rows: Any, is_read: bool) -> None:
    """Between a full page and float32 `rows`."""
    for place in range(2):
        mine = rows[place]
        kept = carray(pointer(line[place] + at[place]), mine.shape, kind.dtype)
        for t in range(mine.shape[0]):
            for d in range(mine.shape[1]):
                if is_read:
                    mine[t, d] = widen(kept[t, d])
                else:
                    kept[t, d] = narrow(mine[t, d], kind[0])


@_compiled
def copy(
    kind: Any, lines: Any, num_heads: int, per_slab: Any, keys: Any, values: Any, is_read: bool
) -> None:
    """Between pages and float32 `keys` `[layers * heads, tokens, dim]`, and `values` alike.

    `per_slab` are pages of a slab, and scales.
    """
    for unit in range(len(keys)):
        dims = keys.shape[2], values.shape[2]
        at = pieces_at(unit // num_heads, unit % num_heads, num_heads, dims, per_slab)
        first = 0
        for line in lines:
            some = slice(first, first + 256 // line[4])
            rows = (keys[unit, some], values[unit, some])
            if line[4] > 8:
                _copy_full(kind, line, at, rows, is_read)
            elif is_read:
                _read_packed(line, at, rows)
            else:
                _write_packed(line, at, rows)
            first = some.stop
