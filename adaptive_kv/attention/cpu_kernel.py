"""The fused decode kernel for CPU, in Numba: one layer, all rows of a single token or a few.

    each row, each kv head:   for each run of pages:   for each token:   score -> weigh -> add

Packed pages are never unpacked to memory: the scale of a key channel is folded into the query, the
scale of a value into its weight. Softmax runs online (Milakov and Gimelshein, arXiv 1805.02867), so
formats may follow each other in any order.

Page layouts are those drawn in `cache/formats`; `cpu_loops` and they change together. All functions
become one before they are compiled: calls between them take a third of the time of small pages.
"""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite.binding import get_host_cpu_features
from numba import carray

from adaptive_kv.attention import cpu_loops, cpu_vectors
from adaptive_kv.attention.cpu_loops import (
    ROW_BYTES,
    RUN_TOKENS,
    add_one,
    add_rows,
    fetch_line,
    fold_scales,
    score_codes,
    score_rows,
    soften,
)
from adaptive_kv.cache.formats import cpu_words
from adaptive_kv.cache.formats.cpu_words import pieces_at, pointer
from adaptive_kv.jit import jit

_HIDDEN = np.float32(-1e30)
"""The score of what is not seen. Not -inf: fast arithmetic may assume that there is none."""

_LINE_BYTES = 64

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_compiled = functools.partial(jit, sources=(cpu_loops, cpu_vectors, cpu_words))


def vector_width(num_dims: int) -> int:
    """How many floats a vector has for heads of so many dimensions; 0 where they do not fit in."""
    is_wide = get_host_cpu_features().get("avx512f", False) and num_dims % 32 == 0
    return 16 if is_wide else 8 if num_dims % 16 == 0 else 0


@_compiled(inline="always")
def _fetch(at: int, num_bytes: int) -> None:
    """Ask for bytes that will be read soon: no hardware foresees where the next page lies."""
    for line in range(at, at + num_bytes, _LINE_BYTES):
        fetch_line(line)


@_compiled(inline="always")
def _cap(scores: Floats, num: int, softcap: float) -> None:
    for g in range(scores.shape[0]):
        for t in range(num):
            scores[g, t] = np.tanh(scores[g, t] / softcap) * softcap


@_compiled(inline="always")
def _hide(scores: Floats, start: int, num: int, own_from: int, from_: int, sinks: int) -> None:
    """Hide tokens before the model's window, and those between the sinks and the mode's."""
    for t in range(num):
        position = start + t
        if position < own_from or sinks <= position < from_:
            for g in range(scores.shape[0]):
                scores[g, t] = _HIDDEN


@_compiled(inline="always")
def _weigh(shape: Any, work: Any, num: int, view: Any) -> None:
    """From raw scores to weights."""
    lanes, group, _, _, _, _, vd = shape
    _, _, _, _, scores, top, total, acc = work
    start, own_from, from_, sinks, softcap = view
    if softcap > 0:
        _cap(scores, num, softcap)
    if start < own_from or (start < from_ and start + num > sinks):
        _hide(scores, start, num, own_from, from_, sinks)
    whole = (num + len(lanes) - 1) // len(lanes) * len(lanes)
    scores[:, num:whole] = _HIDDEN
    where = scores.ctypes.data, top.ctypes.data, total.ctypes.data, acc.ctypes.data
    soften(lanes, group, where[0], whole, where[1], where[2], vd, where[3])


@_compiled(inline="always")
def _run_stop(pages: Integers, first: int, last: int, position: int, size: int) -> int:
    """Where the run of pages from `first` on ends that are weighed together: alike and adjacent.

    A softmax has its price, however few its tokens.
    """
    stop = first + 1
    while (
        stop < min(first + RUN_TOKENS // size, last)
        and pages[stop, 4] == pages[first, 4]
        and pages[stop, 5] == pages[stop - 1, 5] + size
        and pages[stop, 5] < position
    ):
        stop += 1
    return stop


@_compiled(inline="always")
def _read_full(shape: Any, work: Any, pages: Integers, run: Any, at: Any, view: Any) -> None:
    """Attend to a run of pages as the model made them.

    `at` leads from a page's addresses to the head's pieces. While keys are read the same page's
    values are fetched, and meanwhile the next run's keys.
    """
    lanes, group, tiles, kind, size, kd, vd = shape
    queries, _, _, shifts, scores, _, _, acc = work
    first, stop, last, num = run
    mine, weights = queries.ctypes.data, scores.ctypes.data
    shift, sums = shifts.ctypes.data, acc.ctypes.data
    shifts[:] = 0
    for p in range(first, stop):
        _fetch(pages[p, 1] + at[1], vd * 32)
        place = weights + 4 * size * (p - first)
        score_rows(lanes, group, tiles, kind, mine, pages[p, 0] + at[0], place)
    _weigh(shape, work, num, view)
    for p in range(first, stop):
        _fetch(pages[min(p + stop - first, last - 1), 0] + at[0], kd * 32)
        place, some = weights + 4 * size * (p - first), min(size, num - (p - first) * size)
        values = pages[p, 1] + at[1]
        add_rows(lanes, group, kind, place, values, some, vd, shift, sums)


@_compiled(inline="always")
def _read_packed(shape: Any, work: Any, pages: Integers, run: Any, at: Any, view: Any) -> None:
    """As `_read_full`; `at` also leads to the scales and minima."""
    lanes, group, _, _, _, kd, vd = shape
    plain, rotated, folded, shifts, scores, _, _, acc = work
    first, stop, last, num = run
    bits = pages[first, 4]
    size, queries = 256 // bits, plain.ctypes.data if bits == 8 else rotated.ctypes.data
    mine, weights = folded.ctypes.data, scores.ctypes.data
    shift, sums = shifts.ctypes.data, acc.ctypes.data
    for p in range(first, stop):
        _fetch(pages[p, 1] + at[1], vd * 32)
        place, scales = weights + 4 * size * (p - first), pages[p, 2] + at[2]
        fold_scales(lanes, group, queries, 4 * kd, scales, scales + 2 * kd, kd, mine, shift)
        if bits == 8:
            score_codes(lanes, group, 8, mine, pages[p, 0] + at[0], kd, shift, place)
        else:
            score_codes(lanes, group, 4, mine, pages[p, 0] + at[0], kd, shift, place)
    _weigh(shape, work, num, view)
    for p in range(first, stop):
        _fetch(pages[min(p + stop - first, last - 1), 0] + at[0], kd * 32)
        place, scales = weights + 4 * size * (p - first), pages[p, 3] + at[3]
        fold_scales(lanes, group, place, ROW_BYTES, scales, scales + 2 * size, size, place, shift)
        if bits == 8:
            add_rows(lanes, group, 8, place, pages[p, 1] + at[1], size, vd, shift, sums)
        else:
            add_rows(lanes, group, 4, place, pages[p, 1] + at[1], size, vd, shift, sums)


@_compiled(inline="always")
def _keep(page: Integers, slot: int, size: int, at: Any, key: Any, value: Any) -> None:
    """Write a new token's key and value of one head into its slot of a full page."""
    carray(pointer(page[0] + at[0]), (size, len(key)), key.dtype)[slot] = key
    carray(pointer(page[1] + at[1]), (size, len(value)), value.dtype)[slot] = value


@_compiled(inline="always")
def _newest(pages: Integers, position: int) -> int:
    """The page that is reserved for a position."""
    last = len(pages) - 1
    while pages[last, 5] > position:
        last -= 1
    return last


@_compiled(inline="always")
def _begin(work: Any, key: Floats, value: Floats, softcap: float) -> None:
    """Begin every sum with a new token itself, which is always seen."""
    queries, _, _, _, scores, top, total, acc = work
    for g in range(len(queries)):
        score = np.float32(0)
        for d in range(len(key)):
            score += queries[g, d] * key[d]
        scores[g, 0], total[g] = score, 1
        acc[g] = value
    if softcap > 0:
        _cap(scores, 1, softcap)
    top[:] = scores[:, 0]


@_compiled(inline="always")
def _read_past(
    shape: Any, work: Any, pages: Integers, own: Any, at: Any, windows: Any, softcap: float
) -> None:
    """Attend to everything in pages that is before a token of a row and not hidden from it.

    `own` is the position of the row's first token and how many there are. A run that one of them
    has read is in the processor's cache for the others.
    """
    plain, turned, folded, shifts, scores, top, total, acc = work
    first_position, num_new = own
    own_window, window, sinks = windows
    p, last = 0, len(pages)
    while p < last:
        bits, start = pages[p, 4], pages[p, 5]
        stop = _run_stop(pages, p, last, first_position + num_new - 1, 256 // bits)
        for j in range(num_new):
            position = first_position + j
            own_from, from_ = position - own_window + 1, position - window + 1
            num = min((stop - p) * (256 // bits), position - start)
            is_hidden = start + num <= own_from or (start >= sinks and start + num <= from_)
            view, run = (start, own_from, from_, sinks, softcap), (p, stop, last, num)
            mine = (plain[j], turned[j], folded, shifts, scores, top[j], total[j], acc[j])
            if num > 0 and not is_hidden:
                if bits > 8:
                    _read_full(shape, mine, pages, run, at, view)
                else:
                    _read_packed(shape, mine, pages, run, at, view)
        p = stop


@_compiled(fastmath=True, nogil=True)
def decode(
    lanes: Any,
    group: Any,
    tiles: Any,
    queries: Floats,
    rotated: Floats,
    keys: Floats,
    values: Floats,
    kept_keys: Any,
    kept_values: Any,
    rows: Integers,
    max_new: int,
    place: int,
    num_pages: int,
    num_sides: int,
    sinks: int,
    own_window: int,
    scaling: float,
    softcap: float,
    sink_logits: Floats,
    out: Floats,
    turns: Integers,
) -> None:
    """Attention of one layer into `out`, for the rows that `DecodeRows` describes.

    A unit of work is a kv head of a row; `turns` says which are taken (`crew`).
    `lanes`, `group` and `tiles` are tuples as long as a vector is wide, as queries share a kv head,
    and as vectors make a key; `kept_keys` and `kept_values` are `keys` and `values` in the type of
    full pages; `num_pages` and `num_sides` are those of a slab. No row has more than `max_new`
    tokens.
    """
    num_heads, kd, vd = keys.shape[1], keys.shape[2], values.shape[2]
    size = 32 // kept_keys.itemsize
    shape = (lanes, group, tiles, kept_keys[0, 0, 0], size, kd, vd)
    scores = np.empty((len(group), RUN_TOKENS), np.float32)
    folded, shifts = np.empty((len(group), kd), np.float32), np.empty(len(group), np.float32)
    num = len(group)
    top, total = np.empty((max_new, num), np.float32), np.empty((max_new, num), np.float32)
    plain, acc = np.empty((max_new, num, kd), np.float32), np.empty((max_new, num, vd), np.float32)
    turned = np.empty_like(plain)
    work = (plain, turned, folded, shifts, scores, top, total, acc)
    taken, finished = turns.ctypes.data, turns.ctypes.data + 8
    unit = add_one(taken)
    while unit < len(rows) * num_heads:
        token, position, window, table, last, num_new = rows[unit // num_heads]
        h = unit % num_heads
        pages = carray(pointer(table), (last, 6), np.int64)
        at = pieces_at(place, h, num_heads, (kd, vd), (num_pages, num_sides))
        some = slice(h * len(group), (h + 1) * len(group))
        for j in range(num_new):
            page, i = pages[_newest(pages, position + j)], token + j
            _keep(page, position + j - page[5], size, at, kept_keys[i, h], kept_values[i, h])
            plain[j], turned[j] = queries[i, some] * scaling, rotated[i, some] * scaling
            mine = (plain[j], turned[j], folded, shifts, scores, top[j], total[j], acc[j])
            _begin(mine, keys[i, h], values[i, h], softcap)
        windows = (own_window, window, sinks)
        _read_past(shape, work, pages, (position, num_new), at, windows, softcap)
        for j in range(num_new):
            for g in range(len(group)):
                if sink_logits.size > 0:
                    total[j, g] += np.exp(sink_logits[some.start + g] - top[j, g])
                for d in range(vd):
                    out[token + j, some.start + g, d] = acc[j, g, d] / total[j, g]
        add_one(finished)
        unit = add_one(taken)
