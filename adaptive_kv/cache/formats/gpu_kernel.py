"""Bringing pages from one format to another on a GPU, in Triton: one launch for all layers.

    each layer, kv head, tile of tokens:   load -> round to the model's type -> (rotate, find the
    range, round to codes) -> store

Pages are read and written where they lie, through their addresses. A tile is a page of the target,
or one of the source where full pages are made of packed ones. Formats are known at compile time.

Scales, minima and codes are computed as `packed.Packed` does, operation by operation, so int8 comes
out bit by bit the same. Rotating adds up in another order: an int4 code may differ by one where a
key lies between two of them. Rotations are products with signs, which any 16-bit type holds
exactly, so that tensor cores do them without loss.

Heads are handled as two halves throughout, as int4 packs them. Page layouts are those drawn beside
the formats; this file and `attention.gpu_kernel` change together with them.
"""

import triton
import triton.language as tl

WORDS = tl.constexpr(5)
"""Of a line that describes a page: addresses of keys, values, the keys' scales, the values' scales
(as in `table.PageTable`), and the position of its first token."""

_LARGEST = tl.constexpr(65504.0)
_SMALLEST_SCALE = tl.constexpr(2.0**-24)
_TO_EVEN = tl.constexpr(1.5 * 2.0**23)
"""What is added to it has no room left for a fraction."""


@triton.jit
def pointer(address, kind: tl.constexpr):
    """To elements of a type, from a number; pieces begin at multiples of 16 bytes."""
    return tl.multiple_of(address.to(tl.pointer_type(kind)), [16])


@triton.jit
def pointers(addresses, kind: tl.constexpr, same: tl.constexpr):
    """As `pointer`, by token; `same` tokens in a row share a page."""
    return tl.max_constancy(pointer(addresses, kind), [same])


@triton.jit
def signs(i, j, size: tl.constexpr):
    """Rows `i` and columns `j` of Sylvester's Hadamard matrix without its norm, in blocks."""
    common = i[:, None] & j[None, :] & (size - 1)
    common ^= common >> 8
    common ^= common >> 4
    common ^= common >> 2
    common ^= common >> 1
    is_same_block = (i // size)[:, None] == (j // size)[None, :]
    return tl.where(is_same_block, 1 - 2 * (common & 1), 0)


@triton.jit
def rotate(low, high, dim: tl.constexpr, size: tl.constexpr):
    """Both halves of rows in the type of a product, rotated but for the norm, in float32."""
    c = tl.arange(0, low.shape[1])
    d = c + dim // 2
    kind: tl.constexpr = low.dtype
    new_low = tl.dot(low, signs(c, c, size).to(kind), input_precision="tf32x3")
    new_low += tl.dot(high, signs(d, c, size).to(kind), input_precision="tf32x3")
    new_high = tl.dot(low, signs(c, d, size).to(kind), input_precision="tf32x3")
    new_high += tl.dot(high, signs(d, d, size).to(kind), input_precision="tf32x3")
    return new_low, new_high


@triton.jit
def pieces(place, head, num_heads, num_pages, key: tl.constexpr, value: tl.constexpr):
    """How far a head's pieces, of so many bytes, are from a page's addresses; as `Slab` draws."""
    layer = place.to(tl.int64) * num_heads * (key + value)
    return (layer + head * key) * num_pages, (layer + num_heads * key + head * value) * num_pages


@triton.jit
def _half_below(x):
    """The nearest float16 that is not above."""
    near = x.to(tl.float16)
    bits = near.to(tl.int16, bitcast=True).to(tl.int32)
    below = tl.where(bits > 0, bits - 1, tl.where(bits == 0, -32767, bits + 1))
    below = below.to(tl.int16).to(tl.float16, bitcast=True)
    return tl.where(near.to(tl.float32) > x, below, near)


@triton.jit
def _scales(lowest, highest, levels: tl.constexpr):
    """Scale and minimum, float16, for codes of what lies between."""
    lowest = tl.minimum(tl.maximum(lowest, -_LARGEST), _LARGEST)
    highest = tl.minimum(tl.maximum(highest, -_LARGEST), _LARGEST)
    minimum = _half_below(lowest)
    scale = tl.div_rn(highest - minimum.to(tl.float32), tl.full(lowest.shape, levels, tl.float32))
    scale = tl.maximum(scale.to(tl.float16).to(tl.float32), _SMALLEST_SCALE)
    return scale.to(tl.float16), minimum


@triton.jit
def _codes(x, scale, minimum, levels: tl.constexpr):
    scale = tl.broadcast_to(scale.to(tl.float32), x.shape)
    scaled = tl.div_rn(x - minimum.to(tl.float32), scale)
    scaled = tl.minimum(tl.maximum(scaled, 0.0), levels)
    return ((scaled + _TO_EVEN) - _TO_EVEN).to(tl.uint8)


@triton.jit
def load_pair(at, is_there, distance):
    """Two halves of rows, so far apart."""
    return tl.load(at, mask=is_there, other=0), tl.load(at + distance, mask=is_there, other=0)


@triton.jit
def load_codes(at, is_there, distance, bits: tl.constexpr):
    """Codes of both halves; `distance` is from one to the other where they do not share bytes."""
    if bits == 4:
        both = tl.load(at, mask=is_there, other=0)
        low, high = both & 0xF, both >> 4
    else:
        low, high = load_pair(at, is_there, distance)
    return low, high


@triton.jit
def _unrotated(low, high, side, dim: tl.constexpr, size: tl.constexpr):
    """Keys from codes of rotated ones, of a single page whose scales are at `side`.

    Scales join the signs, which float16 holds exactly.
    """
    c = tl.arange(0, low.shape[1])
    d = c + dim // 2
    is_there = c < dim // 2
    side = pointer(side, tl.float16) + c
    scale_low, scale_high = load_pair(side, is_there, dim // 2)
    low_min, high_min = load_pair(side + dim, is_there, dim // 2)
    low, high = low.to(tl.float16), high.to(tl.float16)
    turn = signs(c, c, size), signs(d, c, size), signs(c, d, size), signs(d, d, size)
    new_low = tl.dot(low, (turn[0] * scale_low[:, None]).to(tl.float16))
    new_low += tl.dot(high, (turn[1] * scale_high[:, None]).to(tl.float16))
    new_low += tl.sum(turn[0] * low_min[:, None].to(tl.float32), 0)[None, :]
    new_low += tl.sum(turn[1] * high_min[:, None].to(tl.float32), 0)[None, :]
    new_high = tl.dot(low, (turn[2] * scale_low[:, None]).to(tl.float16))
    new_high += tl.dot(high, (turn[3] * scale_high[:, None]).to(tl.float16))
    new_high += tl.sum(turn[2] * low_min[:, None].to(tl.float32), 0)[None, :]
    new_high += tl.sum(turn[3] * high_min[:, None].to(tl.float32), 0)[None, :]
    return new_low * size**-0.5, new_high * size**-0.5


@triton.jit
def _load_keys(
    at, sides, slot, columns, is_there, dim: tl.constexpr, size: tl.constexpr,
    dtype: tl.constexpr, bits: tl.constexpr, same: tl.constexpr,
):  # fmt: skip
    """Both halves of a tile of keys, float32; `at` and `sides` are addresses by token."""
    if bits > 8:
        rows = pointers(at, dtype, same)[:, None] + slot[:, None] * dim + columns
        low, high = load_pair(rows, is_there, dim // 2)
    else:
        num_tokens: tl.constexpr = 256 // bits
        rows = pointers(at, tl.uint8, same)[:, None] + slot[:, None] + columns * num_tokens
        low, high = load_codes(rows, is_there, dim // 2 * num_tokens, bits)
        if bits == 4:
            low, high = _unrotated(low, high, tl.max(sides, 0), dim, size)
        else:
            scales = pointers(sides, tl.float16, same)[:, None] + columns
            low_scale, high_scale = load_pair(scales, is_there, dim // 2)
            low_min, high_min = load_pair(scales + dim, is_there, dim // 2)
            low = low.to(tl.float32) * low_scale + low_min
            high = high.to(tl.float32) * high_scale + high_min
    return low.to(dtype).to(tl.float32), high.to(dtype).to(tl.float32)


@triton.jit
def _load_values(
    at, sides, slot, columns, is_there, dim: tl.constexpr, dtype: tl.constexpr,
    bits: tl.constexpr, same: tl.constexpr,
):  # fmt: skip
    """As `_load_keys`."""
    if bits > 8:
        rows = pointers(at, dtype, same)[:, None] + slot[:, None] * dim + columns
        low, high = load_pair(rows, is_there, dim // 2)
    else:
        num_tokens: tl.constexpr = 256 // bits
        rows = pointers(at, tl.uint8, same)[:, None] + slot[:, None] * (dim * bits // 8)
        low, high = load_codes(rows + columns, is_there, dim // 2, bits)
        side = pointers(sides, tl.float16, same) + slot
        scale, minimum = tl.load(side)[:, None], tl.load(side + num_tokens)[:, None]
        low = low.to(tl.float32) * scale + minimum
        high = high.to(tl.float32) * scale + minimum
    return low.to(dtype).to(tl.float32), high.to(dtype).to(tl.float32)


@triton.jit
def _store_pair(at, is_there, distance, low, high):
    tl.store(at, low, mask=is_there)
    tl.store(at + distance, high, mask=is_there)


@triton.jit
def _store_codes(at, is_there, distance, low, high, bits: tl.constexpr):
    if bits == 4:
        tl.store(at, low | (high << 4), mask=is_there)
    else:
        _store_pair(at, is_there, distance, low, high)


@triton.jit
def _store_full(
    at, slot, columns, is_there, low, high, dim: tl.constexpr, dtype: tl.constexpr,
    same: tl.constexpr,
):  # fmt: skip
    rows = pointers(at, dtype, same)[:, None] + slot[:, None] * dim + columns
    _store_pair(rows, is_there, dim // 2, low.to(dtype), high.to(dtype))


@triton.jit
def _store_keys(
    at, side, slot, columns, is_there, low, high, dim: tl.constexpr, size: tl.constexpr,
    dot: tl.constexpr, bits: tl.constexpr, same: tl.constexpr,
):  # fmt: skip
    """Pack a page of keys, both halves float32, whose scales go to the address `side`."""
    if bits == 4:
        low, high = rotate(low.to(dot), high.to(dot), dim, size)
        low, high = low * size**-0.5, high * size**-0.5
    levels: tl.constexpr = 2**bits - 1
    low_scale, low_min = _scales(tl.min(low, 0), tl.max(low, 0), levels)
    high_scale, high_min = _scales(tl.min(high, 0), tl.max(high, 0), levels)
    low = _codes(low, low_scale[None, :], low_min[None, :], levels)
    high = _codes(high, high_scale[None, :], high_min[None, :], levels)
    num_tokens: tl.constexpr = 256 // bits
    rows = pointers(at, tl.uint8, same)[:, None] + slot[:, None] + columns * num_tokens
    _store_codes(rows, is_there, dim // 2 * num_tokens, low, high, bits)
    c = tl.arange(0, low.shape[1])
    to = pointer(side, tl.float16) + c
    _store_pair(to, c < dim // 2, dim // 2, low_scale, high_scale)
    _store_pair(to + dim, c < dim // 2, dim // 2, low_min, high_min)


@triton.jit
def _store_values(
    at, side, slot, columns, is_there, low, high, dim: tl.constexpr, bits: tl.constexpr,
    same: tl.constexpr,
):  # fmt: skip
    """As `_store_keys`."""
    levels: tl.constexpr = 2**bits - 1
    num_tokens: tl.constexpr = 256 // bits
    lowest = tl.where(is_there, tl.minimum(low, high), float("inf"))
    highest = tl.where(is_there, tl.maximum(low, high), -float("inf"))
    scale, minimum = _scales(tl.min(lowest, 1), tl.max(highest, 1), levels)
    low = _codes(low, scale[:, None], minimum[:, None], levels)
    high = _codes(high, scale[:, None], minimum[:, None], levels)
    rows = pointers(at, tl.uint8, same)[:, None] + slot[:, None] * (dim * bits // 8)
    _store_codes(rows + columns, is_there, dim // 2, low, high, bits)
    to = pointer(side, tl.float16) + slot
    tl.store(to, scale)
    tl.store(to + num_tokens, minimum)


@triton.jit(
    do_not_specialize=[
        "num_heads", "source_pages", "source_sides", "target_pages", "target_sides"
    ],
    do_not_specialize_on_alignment=["sources", "targets"],
)  # fmt: skip
def convert(
    sources, targets, num_heads, source_pages, source_sides, target_pages, target_sides,
    dtype: tl.constexpr, dot: tl.constexpr, key_dim: tl.constexpr, value_dim: tl.constexpr,
    key_half: tl.constexpr, value_half: tl.constexpr, rotated: tl.constexpr,
    source_bits: tl.constexpr, target_bits: tl.constexpr, tokens: tl.constexpr,
):  # fmt: skip
    """Fill the pages of `targets` with what those of `sources` hold; lines of `WORDS` each.

    Programs: tiles of `tokens` tokens, layers of the group, kv heads. `*_pages` and `*_sides` are
    how many pages slabs have. `key_half` and `value_half` are halves of heads, rounded up to what
    a tile may have; `rotated` is the size of the rotated blocks of a key; `dot` the type in which
    rows of the model's `dtype` are multiplied.
    """
    place, head = tl.program_id(1), tl.program_id(2)
    t = tl.program_id(0) * tokens + tl.arange(0, tokens)
    source_size: tl.constexpr = 256 // source_bits
    target_size: tl.constexpr = 256 // target_bits
    same_source: tl.constexpr = min(source_size, tokens)
    same_target: tl.constexpr = min(target_size, tokens)
    source, slot = sources + t // source_size * WORDS, t % source_size
    target, to_slot = targets + t // target_size * WORDS, t % target_size
    first_target = targets + tl.program_id(0) * tokens // target_size * WORDS
    key_at, value_at = pieces(place, head, num_heads, source_pages, 32 * key_dim, 32 * value_dim)
    key_side, value_side = pieces(place, head, num_heads, source_sides, 4 * key_dim, 256)
    key_to, value_to = pieces(place, head, num_heads, target_pages, 32 * key_dim, 32 * value_dim)
    key_note, value_note = pieces(place, head, num_heads, target_sides, 4 * key_dim, 256)

    columns = tl.arange(0, key_half)[None, :]
    is_there = columns < key_dim // 2
    at, side = tl.load(source) + key_at, tl.load(source + 2) + key_side
    low, high = _load_keys(
        at, side, slot, columns, is_there, key_dim, rotated, dtype, source_bits, same_source
    )
    to, note = tl.load(target) + key_to, tl.load(first_target + 2) + key_note
    if target_bits > 8:
        _store_full(to, to_slot, columns, is_there, low, high, key_dim, dtype, same_target)
    else:
        _store_keys(
            to, note, to_slot, columns, is_there, low, high, key_dim, rotated, dot, target_bits,
            same_target,
        )  # fmt: skip

    columns = tl.arange(0, value_half)[None, :]
    is_there = columns < value_dim // 2
    at, side = tl.load(source + 1) + value_at, tl.load(source + 3) + value_side
    low, high = _load_values(
        at, side, slot, columns, is_there, value_dim, dtype, source_bits, same_source
    )
    to, note = tl.load(target + 1) + value_to, tl.load(first_target + 3) + value_note
    if target_bits > 8:
        _store_full(to, to_slot, columns, is_there, low, high, value_dim, dtype, same_target)
    else:
        _store_values(
            to, note, to_slot, columns, is_there, low, high, value_dim, target_bits, same_target
        )
