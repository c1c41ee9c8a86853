"""The inner loops of the CPU kernel, over vectors: Numba's intrinsics that take addresses.

The width of vectors, the number of queries that share a head, and the kind of elements are known
from the types of arguments (`lanes` and `group` are tuples of that length), so that everything over
them is unrolled. What LLVM makes of plain loops over tokens and channels takes three times as long.

Scores and weights are rows `ROW_BYTES` apart, one for each query.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from adaptive_kv.attention.cpu_vectors import BYTES, Vectors

RUN_TOKENS = 256
"""So many tokens are weighed together, at most."""

ROW_BYTES = 4 * RUN_TOKENS

_FULL_KINDS = {types.float32: "float32", types.uint16: "bfloat16", types.int16: "float16"}
"""Full pages, by the Numba type that their elements go by: it has none for the 16-bit ones."""


def kind_of(numba_type: Any) -> str:
    """The kind of elements that an argument's type stands for."""
    if isinstance(numba_type, types.IntegerLiteral):
        return f"int{numba_type.literal_value}"
    return _FULL_KINDS[numba_type]


def _in_turns(count: int, at_once: int) -> list[range]:
    """`range(count)` in parts of at most `at_once`."""
    return [range(first, min(first + at_once, count)) for first in range(0, count, at_once)]


@intrinsic
def score_rows(
    _context: Any,
    lanes: Any,
    group: Any,
    tiles: Any,
    kind: Any,
    queries: Any,
    keys: Any,
    scores: Any,
) -> Any:
    """Score a full page for the queries of one kv head.

    Addresses of float32 `queries` `[group, dims]`, of `keys` `[tokens, dims]` and of `scores`, of
    which those of the page are written; `tiles` is a tuple as long as there are vectors in a row.
    Queries stay in registers: each load of one would take the place of a load of keys in the
    processor's queue, and so of the memory that is on its way.
    """
    name = kind_of(kind)
    num_tokens = 32 // BYTES[name]

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, len(lanes))
        queries, keys, scores = args[4:]
        row = range(0, len(tiles) * vectors.width, vectors.width)
        num_dims = len(row) * vectors.width
        for some in _in_turns(len(group), max(1, 4 * vectors.num_queries // len(row))):
            held = [
                [
                    vectors.load("float32", vectors.at(queries, 4 * (g * num_dims + dim)))[0]
                    for dim in row
                ]
                for g in some
            ]
            for tokens in _in_turns(num_tokens, 8):
                sums = vectors.zeros(len(some), 8)
                for place, token in enumerate(tokens):  # in the order of memory
                    for number, dim in enumerate(row):
                        at = BYTES[name] * (token * num_dims + dim)
                        (key,) = vectors.load(name, vectors.at(keys, at))
                        for query, mine in zip(held, sums, strict=True):
                            vectors.add_product(mine[place], query[number], key)
                for g, mine in zip(some, sums, strict=True):
                    answer = vectors.sums([vectors.get(each) for each in mine])
                    offset = g * ROW_BYTES + 4 * tokens.start
                    vectors.store(answer, vectors.at(scores, offset))
        return context.get_dummy_value()

    return types.none(lanes, group, tiles, kind, *[types.int64] * 3), generate


@intrinsic(prefer_literal=True)
def score_codes(
    _context: Any,
    lanes: Any,
    group: Any,
    bits: Any,
    queries: Any,
    codes: Any,
    dims: Any,
    offsets: Any,
    scores: Any,
) -> Any:
    """Score a packed page for the queries of one kv head.

    As `score_rows`, but for codes `[dims, tokens]` of `bits` bits each, and `offsets` `[group]`
    that are added to each score.
    """
    name, num_tokens = kind_of(bits), 256 // bits.literal_value
    num_parts = 8 // bits.literal_value

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, len(lanes))
        queries, codes, dims, offsets, scores = args[3:]
        width = vectors.width
        part_dims = builder.udiv(dims, vectors.number(num_parts))
        for some in _in_turns(len(group), vectors.num_queries):
            for tokens in _in_turns(num_tokens, 4 * width):
                places = [*range(tokens.start, tokens.stop, width)]
                sums = vectors.zeros(len(some), len(places))
                for g, mine in zip(some, sums, strict=True):
                    for each in mine:
                        vectors.put(vectors.spread(vectors.at(offsets, 4 * g)), each)
                with vectors.loop(vectors.number(0), part_dims, 1) as dim:
                    row = vectors.at(codes, dim, num_tokens)
                    loaded = [vectors.load(name, vectors.at(row, place)) for place in places]
                    for part in range(num_parts):
                        channel = vectors.at(dim, part_dims, part)
                        for g, mine in zip(some, sums, strict=True):
                            query = vectors.at(queries, vectors.at(channel, dims, g), 4)
                            factor = vectors.spread(query)
                            for keys, each in zip(loaded, mine, strict=True):
                                vectors.add_product(each, factor, keys[part])
                for g, mine in zip(some, sums, strict=True):
                    for place, each in zip(places, mine, strict=True):
                        at = vectors.at(scores, g * ROW_BYTES + 4 * place)
                        vectors.store(vectors.get(each), at)
        return context.get_dummy_value()

    return types.none(lanes, group, bits, *[types.int64] * 5), generate


@intrinsic(prefer_literal=True)
def add_rows(
    _context: Any,
    lanes: Any,
    group: Any,
    kind: Any,
    weights: Any,
    values: Any,
    num: Any,
    dims: Any,
    shifts: Any,
    sums: Any,
) -> Any:
    """Add `num` weighted values of one kv head to what its queries have summed.

    Addresses of `weights` `[group, RUN_TOKENS]`, of `values` `[num, dims]`, of `shifts` `[group]`
    that are added to all dimensions, and of float32 `sums` `[group, dims]`. Two values of four bits
    share a byte, by halves of the dimensions.
    """
    name = kind_of(kind)
    num_parts = 2 if name == "int4" else 1

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, len(lanes))
        weights, values, num, dims, shifts, sums = args[3:]
        part_dims = builder.udiv(dims, vectors.number(num_parts))
        large = 4 // num_parts * vectors.width
        border = vectors.whole(part_dims, large)
        for start, stop, step in ((vectors.number(0), border, large), (border, part_dims, None)):
            num_tiles = (step or vectors.width) // vectors.width
            with vectors.loop(start, stop, num_tiles * vectors.width) as dim:
                for some in _in_turns(len(group), vectors.num_queries):
                    places = [
                        vectors.at(vectors.at(dim, tile * vectors.width), part_dims, part)
                        for tile in range(num_tiles)
                        for part in range(num_parts)
                    ]
                    tile_sums = [
                        [vectors.at(sums, vectors.at(place, dims, g), 4) for place in places]
                        for g in some
                    ]
                    held = vectors.zeros(len(some), len(places))
                    for g, addresses, mine in zip(some, tile_sums, held, strict=True):
                        shift = vectors.spread(vectors.at(shifts, 4 * g))
                        for address, each in zip(addresses, mine, strict=True):
                            (before,) = vectors.load("float32", address)
                            vectors.put(builder.fadd(before, shift), each)
                    with vectors.loop(vectors.number(0), num, 1) as token:
                        row = vectors.at(dim, builder.mul(token, part_dims))
                        loaded: list[Any] = []
                        for tile in range(num_tiles):
                            place = vectors.at(row, tile * vectors.width)
                            loaded += vectors.load(name, vectors.at(values, place, BYTES[name]))
                        for g, mine in zip(some, held, strict=True):
                            weight = vectors.at(vectors.at(weights, g * ROW_BYTES), token, 4)
                            factor = vectors.spread(weight)
                            for value, each in zip(loaded, mine, strict=True):
                                vectors.add_product(each, factor, value)
                    for addresses, mine in zip(tile_sums, held, strict=True):
                        for address, each in zip(addresses, mine, strict=True):
                            vectors.store(vectors.get(each), address)
        return context.get_dummy_value()

    return types.none(lanes, group, kind, *[types.int64] * 6), generate


@intrinsic
def fold_scales(
    _context: Any,
    lanes: Any,
    group: Any,
    rows: Any,
    row_bytes: Any,
    scales: Any,
    minima: Any,
    num: Any,
    folded: Any,
    shifts: Any,
) -> Any:
    """Take scales and minima out of an inner product with codes.

    Addresses of float32 `rows` `[group, num]` that are `row_bytes` apart, of float16 `scales` and
    `minima` `[num]`, of the products of both `folded` (as `rows`, and may be the same), and of
    `shifts` `[group]`, what the minima contribute.
    """

    def generate(context: Any, _builder: Any, _signature: Any, args: Any) -> Any:
        vectors = Vectors(_builder, len(lanes))
        rows, row_bytes, scales, minima, num, folded, shifts = args[2:]
        for some in _in_turns(len(group), 8):
            sums = vectors.zeros(len(some))
            with vectors.loop(vectors.number(0), num, vectors.width) as place:
                (scale,) = vectors.load("float16", vectors.at(scales, place, 2))
                (minimum,) = vectors.load("float16", vectors.at(minima, place, 2))
                for g, each in zip(some, sums, strict=True):
                    offset = vectors.at(_builder.mul(row_bytes, vectors.number(g)), place, 4)
                    (row,) = vectors.load("float32", vectors.at(rows, offset))
                    vectors.store(_builder.fmul(row, scale), vectors.at(folded, offset))
                    vectors.add_product(each, row, minimum)
            total = vectors.sums([vectors.get(each) for each in sums])
            vectors.store_first(total, len(some), vectors.at(shifts, 4 * some.start))
        return context.get_dummy_value()

    return types.none(lanes, group, *[types.int64] * 7), generate


@intrinsic
def soften(
    _context: Any,
    lanes: Any,
    group: Any,
    scores: Any,
    num: Any,
    tops: Any,
    totals: Any,
    dims: Any,
    sums: Any,
) -> Any:
    """Turn scores into weights against the highest so far; rescale what was summed before.

    Addresses of `scores` `[group, RUN_TOKENS]`, `num` of them (whole vectors), of the highest
    scores `tops`, of the `totals` of weights, and of the weighted `sums` `[group, dims]`.
    """

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, len(lanes))
        scores, num, tops, totals, dims, sums = args[2:]
        for g in range(len(group)):
            row, top_at, total_at = (
                vectors.at(base, step * g)
                for base, step in ((scores, ROW_BYTES), (tops, 4), (totals, 4))
            )
            before, (highest, total) = vectors.spread(top_at), vectors.zeros(2)
            vectors.put(before, highest)
            with vectors.loop(vectors.number(0), num, vectors.width) as place:
                (score,) = vectors.load("float32", vectors.at(row, place, 4))
                vectors.put(vectors.call("maxnum", vectors.get(highest), score), highest)
            top = vectors.highest(vectors.get(highest))
            with vectors.loop(vectors.number(0), num, vectors.width) as place:
                at = vectors.at(row, place, 4)
                (score,) = vectors.load("float32", at)
                weight = vectors.exp(builder.fsub(score, top))
                vectors.store(weight, at)
                vectors.put(builder.fadd(vectors.get(total), weight), total)
            shrink = vectors.exp(builder.fsub(before, top))
            gained = vectors.total(vectors.get(total))
            kept = builder.fmul(vectors.spread(total_at), shrink)
            vectors.store_first(builder.fadd(kept, gained), 1, total_at)
            vectors.store_first(top, 1, top_at)
            with vectors.loop(vectors.number(0), dims, vectors.width) as dim:
                at = vectors.at(sums, vectors.at(dim, dims, g), 4)
                vectors.store(builder.fmul(vectors.load("float32", at)[0], shrink), at)
        return context.get_dummy_value()

    return types.none(lanes, group, *[types.int64] * 6), generate


@intrinsic
def add_one(_context: Any, address: Any) -> Any:
    """Add 1 to the int64 at an address that other threads add to as well; what it was before.

    Whoever sees the new number also sees everything that was written before.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def fetch_line(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Vectors(builder, 8).fetch(args[0])
        return context.get_dummy_value()

    return types.none(types.int64), generate
