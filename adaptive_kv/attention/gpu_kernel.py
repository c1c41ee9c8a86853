"""Attention over pages of every format on a GPU, in Triton; the GPU's half of `cpu_kernel`.

    each row, kv head, split:   full pages -> int8 pages -> int4 pages -> the row's own tokens
    each row, query head:       splits are merged by their log-sum-exp

One kernel, three loops after each other that share a running softmax (Milakov and Gimelshein, arXiv
1805.02867): order of keys does not matter, so each loop has the pages of one format, listed apart.
No loop branches on a format, a kernel is compiled without the loops of formats that no row has,
each split takes its share of every list, and a layer costs two launches whatever its pages are. A
launch for each format would cost up to four, and partial results in memory for each.

Queries that share a kv head are the rows of one tile, padded to what a tensor core takes. Packed
pages are never unpacked: the scale of a key channel is folded into the query, the scale of a value
into its weight, int4 queries are rotated as its keys were. Heads are two halves throughout, as int4
packs them.

Everything that changes from step to step is data on the device: `rows` and the lists that it points
to. Page layouts are those drawn in `cache/formats`.
"""

import triton
import triton.language as tl

from adaptive_kv.cache.formats.gpu_kernel import (
    WORDS,
    load_codes,
    load_pair,
    pieces,
    pointer,
    pointers,
    rotate,
)

COLUMNS = tl.constexpr(10)
"""Of `rows`: first token in the batch, how many, position of the first, the mode's window, then
for full, int8 and int4 pages the address of their list and its length."""

_EMPTY = tl.constexpr(-1e30)
"""The highest score among none. Finite, so that differences with it are numbers."""


@triton.jit
def _weigh(scores, top, total, low, high):
    """Join scores to the running softmax; their weights, and the sums scaled to the new top."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    shrink = tl.exp(top - new_top)
    weights = tl.exp(scores - new_top[:, None])
    total = total * shrink + tl.sum(weights, 1)
    return weights, new_top, total, low * shrink[:, None], high * shrink[:, None]


@triton.jit
def _shown(scores, at, keys_at, is_key, view, softcap, has_softcap: tl.constexpr):
    """Scores with what a query does not see at -inf; `at` and `keys_at` are positions."""
    if has_softcap:
        scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
    own_window, window, sinks = view
    distance = at[:, None] - keys_at[None, :]
    is_seen = (distance >= 0) & (distance < own_window)
    is_seen = is_seen & ((distance < window) | (keys_at < sinks)[None, :])
    return tl.where(is_seen & is_key[None, :], scores, -float("inf"))


@triton.jit
def _share(num, split, num_splits):
    """The range of so many things that a split takes."""
    each = tl.cdiv(num, num_splits)
    return tl.minimum(split * each, num), tl.minimum((split + 1) * each, num)


@triton.jit
def _read_rows(
    query, state, keys, values, is_key, at, keys_at, view, softcap, dot: tl.constexpr,
    dims: tl.constexpr, halves: tl.constexpr, has_softcap: tl.constexpr,
):  # fmt: skip
    """Attend to a tile of rows as the model made them; `keys` and `values` point to each."""
    q_low, q_high, scaling = query
    top, total, low, high = state
    c, e = tl.arange(0, halves[0])[None, :], tl.arange(0, halves[1])[None, :]
    is_there = is_key[:, None] & (c < dims[0] // 2)
    k_low, k_high = load_pair(keys[:, None] + c, is_there, dims[0] // 2)
    scores = tl.dot(q_low, tl.trans(k_low.to(dot)), input_precision="tf32x3")
    scores += tl.dot(q_high, tl.trans(k_high.to(dot)), input_precision="tf32x3")
    scores = _shown(scores * scaling, at, keys_at, is_key, view, softcap, has_softcap)
    weights, top, total, low, high = _weigh(scores, top, total, low, high)
    is_there = is_key[:, None] & (e < dims[1] // 2)
    v_low, v_high = load_pair(values[:, None] + e, is_there, dims[1] // 2)
    low += tl.dot(weights.to(dot), v_low.to(dot), input_precision="tf32x3")
    high += tl.dot(weights.to(dot), v_high.to(dot), input_precision="tf32x3")
    return top, total, low, high


@triton.jit
def _read_full(
    query, state, lines, num, shares, at, position, view, offsets, softcap,
    dtype: tl.constexpr, dot: tl.constexpr, dims: tl.constexpr, halves: tl.constexpr,
    size: tl.constexpr, num_pages: tl.constexpr, has_softcap: tl.constexpr,
):  # fmt: skip
    """Attend to full pages of `size` tokens, `num_pages` at a time, that lie anywhere."""
    t = tl.arange(0, num_pages * size)
    slot = t % size
    first, last = _share(tl.cdiv(num, num_pages), shares[0], shares[1])
    for block in range(first, last):
        page = block * num_pages + t // size
        line = lines + page * WORDS
        keys = tl.load(line, mask=page < num, other=0) + offsets[0]
        values = tl.load(line + 1, mask=page < num, other=0) + offsets[1]
        start = tl.load(line + 4, mask=page < num, other=0).to(tl.int32)
        is_key = (page < num) & (start + slot < position)  # the rest was never written
        state = _read_rows(
            query, state, pointers(keys, dtype, size) + slot * dims[0],
            pointers(values, dtype, size) + slot * dims[1], is_key, at, start + slot, view,
            softcap, dot, dims, halves, has_softcap,
        )  # fmt: skip
    return state


@triton.jit
def _load_sides(at, c, dim: tl.constexpr):
    """Scales of both halves of a page's keys, and their minima, float32."""
    at, is_there = pointer(at, tl.float16) + c, c < dim // 2
    low, high = load_pair(at, is_there, dim // 2)
    low_min, high_min = load_pair(at + dim, is_there, dim // 2)
    return (
        low.to(tl.float32)[None, :],
        high.to(tl.float32)[None, :],
        low_min.to(tl.float32)[None, :],
        high_min.to(tl.float32)[None, :],
    )


@triton.jit
def _read_packed(
    query, state, lines, num, shares, at, view, offsets, softcap,
    dot: tl.constexpr, codes: tl.constexpr, dims: tl.constexpr, halves: tl.constexpr,
    bits: tl.constexpr, has_softcap: tl.constexpr,
):  # fmt: skip
    """Attend to packed pages, one at a time; `query` in float32, scaled."""
    size: tl.constexpr = 256 // bits
    q_low, q_high = query
    top, total, low, high = state
    t, c, e = tl.arange(0, size), tl.arange(0, halves[0]), tl.arange(0, halves[1])
    is_key = t >= 0
    first, last = _share(num, shares[0], shares[1])
    for page in range(first, last):
        line = lines + page * WORDS
        start = tl.load(line + 4).to(tl.int32)
        sides = _load_sides(tl.load(line + 2) + offsets[2], c, dims[0])
        keys = pointer(tl.load(line) + offsets[0], tl.uint8)
        k_low, k_high = load_codes(
            keys + c[:, None] * size + t[None, :],
            (c < dims[0] // 2)[:, None],
            dims[0] // 2 * size,
            bits,
        )
        shift = tl.sum(q_low * sides[2] + q_high * sides[3], 1)
        scores = tl.dot((q_low * sides[0]).to(codes), k_low.to(codes), input_precision="tf32x3")
        scores += tl.dot((q_high * sides[1]).to(codes), k_high.to(codes), input_precision="tf32x3")
        scores = _shown(scores + shift[:, None], at, start + t, is_key, view, softcap, has_softcap)
        weights, top, total, low, high = _weigh(scores, top, total, low, high)
        side = pointer(tl.load(line + 3) + offsets[3], tl.float16) + t
        scale, minimum = tl.load(side).to(tl.float32), tl.load(side + size).to(tl.float32)
        values = pointer(tl.load(line + 1) + offsets[1], tl.uint8)
        v_low, v_high = load_codes(
            values + t[:, None] * (dims[1] * bits // 8) + e[None, :],
            (e < dims[1] // 2)[None, :],
            dims[1] // 2,
            bits,
        )
        shift = tl.sum(weights * minimum[None, :], 1)[:, None]
        weights = (weights * scale[None, :]).to(dot)
        low += tl.dot(weights, v_low.to(dot), input_precision="tf32x3") + shift
        high += tl.dot(weights, v_high.to(dot), input_precision="tf32x3") + shift
    return top, total, low, high


@triton.jit
def _read_own(
    query, state, keys, values, strides, num, at, position, view, softcap,
    dot: tl.constexpr, dims: tl.constexpr, halves: tl.constexpr, num_tokens: tl.constexpr,
    has_softcap: tl.constexpr,
):  # fmt: skip
    """Attend to `num` of the row's own tokens, `num_tokens` at a time."""
    for first in range(0, num, num_tokens):
        t = first + tl.arange(0, num_tokens)
        state = _read_rows(
            query, state, keys + t * strides[0], values + t * strides[1], t < num, at,
            position + t, view, softcap, dot, dims, halves, has_softcap,
        )  # fmt: skip
    return state


@triton.jit
def _keep(
    keys, values, lines, num, position, offsets, dtype: tl.constexpr, dims: tl.constexpr,
    halves: tl.constexpr,
):  # fmt: skip
    """Write a new token's key and value of one head into the full page reserved for it."""
    newest = num - 1
    while tl.load(lines + newest * WORDS + 4) > position:
        newest -= 1
    line = lines + newest * WORDS
    slot = position - tl.load(line + 4)
    d = tl.arange(0, 2 * halves[0])
    to = pointer(tl.load(line) + offsets[0], dtype) + slot * dims[0] + d
    tl.store(to, tl.load(keys + d, mask=d < dims[0]), mask=d < dims[0])
    d = tl.arange(0, 2 * halves[1])
    to = pointer(tl.load(line + 1) + offsets[1], dtype) + slot * dims[1] + d
    tl.store(to, tl.load(values + d, mask=d < dims[1]), mask=d < dims[1])


@triton.jit
def _leave(state, sums, tops, at, is_query, dims: tl.constexpr, halves: tl.constexpr):
    """Leave a split's state for `merge`, where `at` says."""
    top, total, low, high = state
    e = tl.arange(0, halves[1])[None, :]
    is_there = is_query[:, None] & (e < dims[1] // 2)
    tl.store(tops + at * 2, top, mask=is_query)
    tl.store(tops + at * 2 + 1, total, mask=is_query)
    to = sums + at[:, None] * dims[1] + e
    tl.store(to, low, mask=is_there)
    tl.store(to + dims[1] // 2, high, mask=is_there)


@triton.jit
def _finish(
    state, sink_logits, out, at, member, is_query, dims: tl.constexpr, halves: tl.constexpr,
    has_sinks: tl.constexpr,
):  # fmt: skip
    """Write what attention comes to, where `at` says."""
    top, total, low, high = state
    if has_sinks:
        sink = tl.load(sink_logits + member, mask=is_query, other=0).to(tl.float32)
        new_top = tl.maximum(top, sink)
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.exp(sink - new_top)
        low, high = low * shrink[:, None], high * shrink[:, None]
    total = tl.where(is_query, total, 1)  # where nobody asks nothing was seen
    e = tl.arange(0, halves[1])[None, :]
    is_there = is_query[:, None] & (e < dims[1] // 2)
    to = out + at[:, None] * dims[1] + e
    tl.store(to, (low / total[:, None]).to(out.dtype.element_ty), mask=is_there)
    high = (high / total[:, None]).to(out.dtype.element_ty)
    tl.store(to + dims[1] // 2, high, mask=is_there)


@triton.jit(do_not_specialize=["place", "num_pages", "num_sides", "sinks", "own_window"])
def attend(
    queries, keys, values, rows, sums, tops, sink_logits, out,
    place, num_pages, num_sides, sinks, own_window, scaling, softcap,
    query_head, query_token, key_head, key_token, value_head, value_token,
    num_heads: tl.constexpr, group: tl.constexpr, padded: tl.constexpr, tile: tl.constexpr,
    key_dim: tl.constexpr, value_dim: tl.constexpr, key_half: tl.constexpr,
    value_half: tl.constexpr, rotated: tl.constexpr, dot: tl.constexpr, codes: tl.constexpr,
    full_size: tl.constexpr, full_pages: tl.constexpr, own_tokens: tl.constexpr,
    is_decode: tl.constexpr, has_int8: tl.constexpr, has_int4: tl.constexpr,
    has_softcap: tl.constexpr, has_sinks: tl.constexpr,
):  # fmt: skip
    """Attention of one layer, for rows of one token each (`is_decode`) or of many.

    Programs: kv heads; splits of a row that decodes, or tiles of `tile` queries of one that does
    not; rows. A decoding row's key and value are written into its page, and each split leaves
    sums `[rows, splits, query heads, value_dim]` and `tops` `[..., 2]` (highest score, sum of
    weights) for `merge`. Of other rows the result goes into `out` `[tokens, query heads,
    value_dim]`, and nothing is written to pages.

    `queries`, `keys` and `values` have strides by head and token. `padded` is `group` rounded up;
    `key_half` and `value_half` are halves of heads, rounded up. `dot` and `codes` are the types in
    which full and packed rows are multiplied.
    """
    head, part, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    line = rows + row * COLUMNS
    token, num_new = tl.load(line), tl.load(line + 1).to(tl.int32)
    position, window = tl.load(line + 2).to(tl.int32), tl.load(line + 3).to(tl.int32)
    first = 0 if is_decode else part * tile
    if first >= num_new:
        return
    m = tl.arange(0, tile * padded)
    mine, member = first + m // padded, head * group + m % padded
    is_query = (m % padded < group) & (mine < num_new)
    at = position + mine
    c = tl.arange(0, key_half)[None, :]
    q_at = queries + (token + mine)[:, None] * query_token + member[:, None] * query_head + c
    is_there = is_query[:, None] & (c < key_dim // 2)
    q_low = tl.load(q_at, mask=is_there, other=0).to(dot)
    q_high = tl.load(q_at + key_dim // 2, mask=is_there, other=0).to(dot)
    keys += token * key_token + head * key_head
    values += token * value_token + head * value_head
    dtype: tl.constexpr = keys.dtype.element_ty
    dims: tl.constexpr = (key_dim, value_dim)
    halves: tl.constexpr = (key_half, value_half)
    key_at, value_at = pieces(place, head, num_heads, num_pages, 32 * key_dim, 32 * value_dim)
    key_side, value_side = pieces(place, head, num_heads, num_sides, 4 * key_dim, 256)
    offsets = (key_at, value_at, key_side, value_side)
    view = (own_window, window, sinks)
    shares = (part, tl.num_programs(1)) if is_decode else (0, 1)
    state = (
        tl.full([tile * padded], _EMPTY, tl.float32),
        tl.zeros([tile * padded], tl.float32),
        tl.zeros([tile * padded, value_half], tl.float32),
        tl.zeros([tile * padded, value_half], tl.float32),
    )
    full = tl.load(line + 4).to(tl.pointer_type(tl.int64))
    num_full = tl.load(line + 5).to(tl.int32)
    state = _read_full(
        (q_low, q_high, scaling), state, full, num_full, shares, at, position, view, offsets,
        softcap, dtype, dot, dims, halves, full_size, full_pages, has_softcap,
    )  # fmt: skip
    num_own = tl.minimum(first + tile, num_new)
    if is_decode:
        num_own = 1 if part == 0 else 0
        if part == 0:
            _keep(keys, values, full, num_full, position, offsets, dtype, dims, halves)
    state = _read_own(
        (q_low, q_high, scaling), state, keys, values, (key_token, value_token), num_own, at,
        position, view, softcap, dot, dims, halves, own_tokens, has_softcap,
    )  # fmt: skip
    if has_int8:
        state = _read_packed(
            (q_low.to(tl.float32) * scaling, q_high.to(tl.float32) * scaling), state,
            tl.load(line + 6).to(tl.pointer_type(tl.int64)), tl.load(line + 7).to(tl.int32),
            shares, at, view, offsets, softcap, dot, codes, dims, halves, 8, has_softcap,
        )  # fmt: skip
    if has_int4:
        turned_low, turned_high = rotate(q_low, q_high, key_dim, rotated)
        norm = scaling * rotated**-0.5
        state = _read_packed(
            (turned_low * norm, turned_high * norm), state,
            tl.load(line + 8).to(tl.pointer_type(tl.int64)), tl.load(line + 9).to(tl.int32),
            shares, at, view, offsets, softcap, dot, codes, dims, halves, 4, has_softcap,
        )  # fmt: skip
    if is_decode:
        at = (row * tl.num_programs(1) + part).to(tl.int64) * num_heads * group + member
        _leave(state, sums, tops, at, is_query, dims, halves)
    else:
        at = (token + mine) * num_heads * group + member
        _finish(state, sink_logits, out, at, member, is_query, dims, halves, has_sinks)


@triton.jit(do_not_specialize=["num_splits"])
def merge(
    sums, tops, rows, sink_logits, out, num_splits, value_dim: tl.constexpr, padded: tl.constexpr,
    max_splits: tl.constexpr, has_sinks: tl.constexpr,
):  # fmt: skip
    """Join what the splits of `attend` left, into the rows' places in `out`.

    Programs: query heads, rows. `padded` is `value_dim` rounded up to a power of two. Rows without
    a token, of which nothing was left, come to zeros.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(0)
    line = rows + row * COLUMNS
    is_row = tl.load(line + 1) > 0
    s, d = tl.arange(0, max_splits), tl.arange(0, padded)
    at = (row * num_splits + s).to(tl.int64) * num_heads + head
    was_left = (s < num_splits) & is_row
    top = tl.load(tops + at * 2, mask=was_left, other=_EMPTY)
    total = tl.load(tops + at * 2 + 1, mask=was_left, other=0)
    best = tl.max(top, 0)
    if has_sinks:
        sink = tl.load(sink_logits + head).to(tl.float32)
        best = tl.maximum(best, sink)
    factor = tl.exp(top - best)
    all_total = tl.sum(total * factor, 0)
    if has_sinks:
        all_total += tl.exp(sink - best)
    all_total = tl.where(is_row, all_total, 1)
    is_there = was_left[:, None] & (d < value_dim)[None, :]
    part = tl.load(sums + at[:, None] * value_dim + d[None, :], mask=is_there, other=0)
    joined = tl.sum(part * factor[:, None], 0) / all_total
    to = out + (tl.load(line) * num_heads + head) * value_dim + d
    tl.store(to, joined.to(out.dtype.element_ty), mask=d < value_dim)


@triton.jit(do_not_specialize=["num"], do_not_specialize_on_alignment=["lines"])
def put_lines(lines, num, padded: tl.constexpr):
    """Write each line, behind the address it begins with, to that address."""
    n = tl.program_id(0) * padded + tl.arange(0, padded)
    line = lines + n * (WORDS + 1)
    to = tl.load(line, mask=n < num, other=0).to(tl.pointer_type(tl.int64))
    for word in tl.static_range(WORDS):
        tl.store(to + word, tl.load(line + 1 + word, mask=n < num, other=0), mask=n < num)
