"""Attention on a GPU, fused over pages of every format; the host's half of `gpu_kernel`.

One call answers one layer for all rows that decode a single token, another one for all others.
Pages are read where they lie, through their addresses.

Under `TRITON_INTERPRET=1` the same kernels run on the CPU, slowly: that is how they are tested.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptive_kv.attention.gpu_lists import Row, Sent, kernels, send
from adaptive_kv.attention.gpu_tuning import DEFAULT, Tuning, tuning_of
from adaptive_kv.attention.interface import NO_WINDOW, LayerCall
from adaptive_kv.cache.formats import triton_here
from adaptive_kv.cache.formats.gpu import (
    dot_type,
    load_converters,
    power_of_two,
    shape_options,
)
from adaptive_kv.cache.geometry import LayerGroup
from adaptive_kv.cache.store import GroupPages
from adaptive_kv.cache.table import PageTable

_MAX_SPLITS = 64
_INTERPRETED_CORES = 6
_DECODE_TILE = 16
"""Queries at a time, heads that share keys counted one by one: the least that a tensor core takes.
"""
_OWN_TOKENS = 32
_MAX_DIM, _MAX_CHUNK_DIM = 256, 128
_FORMATS = ("has_int8", "has_int4")


def can_serve(group: LayerGroup, device: torch.device) -> bool:
    """Whether the kernels read pages of this group, for rows of one token."""
    return triton_here.can_handle(group, device, _MAX_DIM)


def can_serve_chunks(group: LayerGroup, device: torch.device) -> bool:
    """Whether the kernels also answer rows of many tokens."""
    return triton_here.can_handle(group, device, _MAX_CHUNK_DIM)


def make_rows(
    pages: GroupPages, rows: Sequence[tuple[int, int, int | None, PageTable]], sinks: int
) -> "DecodeRows":
    """Of (place in the batch, position, the mode's window, pages) for every row.

    Raises `torch.OutOfMemoryError`.
    """
    device = pages.pages.device
    lines = [Row(at, 1, position, window, table) for at, position, window, table in rows]
    sent = send(lines, pages.group.full_bits, device)
    num_splits = _num_splits(len(rows) * pages.group.num_kv_heads, sent.num_blocks, device)
    return DecodeRows(pages, sent, tuple([table for *_, table in rows]), sinks, num_splits)


def make_fixed_rows(
    pages: GroupPages, rows: Tensor, sinks: int, *, has_packed: bool
) -> "DecodeRows":
    """Of `rows` that stay where they are on the device while others are written into them.

    Whatever they will be: pages of every format, or full ones alone unless `has_packed`, and as
    many splits as the longest sequences want. Rows without a token come to zeros.
    """
    sent = Sent(rows, has_int8=has_packed, has_int4=has_packed, num_blocks=_MAX_SPLITS)
    num_programs = len(rows) * pages.group.num_kv_heads
    num_splits = _num_splits(num_programs, sent.num_blocks, pages.pages.device)
    return DecodeRows(pages, sent, (), sinks, num_splits)


def make_chunks(pages: GroupPages, rows: Sequence[Row], sinks: int) -> "ChunkRows":
    """Of rows of many tokens. Raises `torch.OutOfMemoryError`."""
    sent = send(rows, pages.group.full_bits, pages.pages.device)
    return ChunkRows(pages, sent, sinks, max(row.num_new for row in rows))


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows of the batch that decode one token each, and where their pages are, for one group.

    Among the pages of the `tables` is the full one reserved for the new token. Rows that others
    write on the device have none.
    """

    pages: GroupPages
    sent: Sent
    tables: tuple[PageTable, ...]
    sinks: int
    num_splits: int

    def advance(self) -> None:
        """The same rows, one token later."""
        self.sent.rows[:, 2] += 1

    def attend(
        self,
        call: LayerCall,
        place: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
    ) -> None:
        """As `kernels.Rows.attend`, of rows that decode."""
        given = _rows_of(queries, keys, values)
        num_rows, num_heads, dim = len(self.sent.rows), queries.shape[0], values.shape[-1]
        parts = (num_rows, self.num_splits, num_heads)
        sums = torch.empty(*parts, dim, dtype=torch.float32, device=out.device)
        tops = torch.empty(*parts, 2, dtype=torch.float32, device=out.device)
        group = self.pages.group
        _start(
            self.pages,
            (group.num_kv_heads, self.num_splits, num_rows),
            decode_options(group, num_heads, self.sent, call, tuning_of(out.device)),
            *(*given, self.sent.rows, sums, tops, None, out),
            *_asked(self.pages, call, place, self.sinks),
            *_strides(given),
        )
        kernels().merge[num_heads, num_rows](
            *(sums, tops, self.sent.rows, call.sink_logits, out, self.num_splits),
            value_dim=dim,
            padded=power_of_two(dim),
            max_splits=_MAX_SPLITS,
            has_sinks=call.sink_logits is not None,
        )


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """Rows of the batch of many tokens each, for one group of layers."""

    pages: GroupPages
    sent: Sent
    sinks: int
    max_new: int

    def attend(
        self,
        call: LayerCall,
        place: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
    ) -> None:
        """As `kernels.Rows.attend`; nothing is written into pages."""
        given = _rows_of(queries, keys, values)
        group, num_heads = self.pages.group, queries.shape[0]
        options = chunk_options(group, num_heads, self.sent, call, tuning_of(out.device))
        num_tiles = -(-self.max_new // options["tile"])
        _start(
            self.pages,
            (group.num_kv_heads, num_tiles, len(self.sent.rows)),
            options,
            *(*given, self.sent.rows, None, None, call.sink_logits, out),
            *_asked(self.pages, call, place, self.sinks),
            *_strides(given),
        )


_LOADED: set[tuple[Any, ...]] = set()
"""Kinds of kernels that are on the device, but for the formats that they read."""


def _start(
    pages: GroupPages, grid: tuple[int, int, int], options: dict[str, Any], *arguments: Any
) -> None:
    """Start `gpu_kernel.attend`.

    The first one of a kind, which is the probe's, has everything compiled and loaded that this
    group may want later: when a neighbour has taken the memory there might be no room for code.
    """
    kind = tuple(value for name, value in options.items() if name not in _FORMATS)
    if kind not in _LOADED:
        load_converters(pages.group, pages.pages.device)
        for has_them in itertools.product((False, True), repeat=len(_FORMATS)):
            some = {**options, **dict(zip(_FORMATS, has_them, strict=True))}
            kernels().attend[0, 1, 1](*arguments, **some)
        _LOADED.add(kind)
    kernels().attend[grid](*arguments, **options)


def decode_options(
    group: LayerGroup, num_heads: int, sent: Sent, call: LayerCall, tuning: Tuning = DEFAULT
) -> dict[str, Any]:
    """What `gpu_kernel.attend` is compiled for where rows decode."""
    is_small = max(group.key_dim, group.value_dim) <= 128
    return {
        **_options(group, num_heads, sent, call, tuning),
        "padded": max(_DECODE_TILE, power_of_two(num_heads // group.num_kv_heads)),
        "tile": 1,
        "own_tokens": _DECODE_TILE,
        "is_decode": True,
        "has_sinks": False,
        "num_warps": tuning.decode_warps * (1 if is_small else 2),
        "num_stages": tuning.decode_stages,
    }


def chunk_options(
    group: LayerGroup, num_heads: int, sent: Sent, call: LayerCall, tuning: Tuning = DEFAULT
) -> dict[str, Any]:
    """As `decode_options`, of rows of many tokens."""
    padded = power_of_two(num_heads // group.num_kv_heads)
    return {
        **_options(group, num_heads, sent, call, tuning),
        "padded": padded,
        "tile": max(1, tuning.chunk_tile // padded),
        "own_tokens": _OWN_TOKENS,
        "is_decode": False,
        "has_sinks": call.sink_logits is not None,
        "num_warps": tuning.chunk_warps,
        "num_stages": tuning.chunk_stages,
    }


def _rows_of(*tensors: Tensor) -> list[Tensor]:
    """The same rows, each in one piece; models nearly always make them so."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _strides(tensors: Sequence[Tensor]) -> list[int]:
    return [x.stride(dim) for x in tensors for dim in (0, 1)]


def _asked(pages: GroupPages, call: LayerCall, place: int, sinks: int) -> tuple[float, ...]:
    own_window = NO_WINDOW if call.window is None else call.window
    slabs = pages.pages.pages_per_slab, pages.sides.pages_per_slab
    return place, *slabs, sinks, own_window, call.scaling, call.softcap or 0.0


def _options(
    group: LayerGroup, num_heads: int, sent: Sent, call: LayerCall, tuning: Tuning
) -> dict[str, Any]:
    return {
        **_shape(group),
        "group": num_heads // group.num_kv_heads,
        "has_int8": sent.has_int8,
        "has_int4": sent.has_int4,
        "has_softcap": call.softcap is not None,
        "full_pages": tuning.full_pages,
    }


@functools.cache
def _shape(group: LayerGroup) -> dict[str, Any]:
    shape = shape_options(group)
    return {
        **shape,
        "num_heads": group.num_kv_heads,
        # Sixteen bits of which more are left for the fraction: codes times scales are small.
        "codes": dot_type(torch.float16) if group.dtype == torch.bfloat16 else shape["dot"],
        "full_size": 32 // group.dtype.itemsize,
    }


def _num_splits(num_programs: int, num_blocks: int, device: torch.device) -> int:
    """Enough that every core has work, as long as each split has some."""
    if triton_here.is_interpreted():
        num_cores = _INTERPRETED_CORES
    else:
        num_cores = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = tuning_of(device).programs_per_core * num_cores // num_programs
    return max(1, min(wanted, num_blocks, _MAX_SPLITS))
