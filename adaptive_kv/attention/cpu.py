"""Decode attention on CPU, fused over pages of every format, without a compiler on the box.

One call answers one layer for all rows that decode a single token. Pages are read where they lie,
through their addresses; packed ones are never unpacked to memory: the scale of a key channel is
folded into the query, the scale of a value into its weight. Softmax runs online (Milakov and
Gimelshein, arXiv 1805.02867), so formats may follow each other in any order.

    each (row, kv head):   for each page:  scores [group, tokens] -> rescale -> accumulate

The kernel runs in the worker's thread and releases the interpreter, so that HTTP goes on beside it.
Numba's own thread pools wait by spinning, which made a step seven times slower as soon as another
program wanted the same cores.

Page layouts are those drawn in `cache/formats`; this file and they change together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache.formats.int4 import rotate
from adaptive_kv.cache.geometry import BLOCK_TOKENS, LayerGroup

NO_WINDOW = 1 << 40
"""Stands for a window that hides nothing."""

_INT8_TOKENS = BLOCK_TOKENS // 2
_FULL_TOKENS = BLOCK_TOKENS // 8  # in float32, the only type served here
_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""float16 by its bits: Numba has no half precision on CPU."""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def can_serve(group: LayerGroup, device: torch.device) -> bool:
    """Whether the kernel reads pages of this group."""
    return device.type == "cpu" and group.dtype is torch.float32


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows of the batch that decode one token each, and where their pages are, for one group.

    `tokens` are their places in the packed batch; `positions` those of their new tokens; row `r`
    owns `pages[first[r]:first[r + 1]]`, each a line (address, side address, bits, start).
    `windows` are the modes' windows, `NO_WINDOW` where there is none.
    """

    group: LayerGroup
    tokens: Tensor
    positions: Integers
    windows: Integers
    first: Integers
    pages: Integers
    sinks: int

    def attend(
        self, call: LayerCall, place: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Output `[rows, query_heads, value_dim]` of layer `place` of the group.

        `queries` `[query_heads, tokens, key_dim]`, `keys` and `values` `[kv_heads, tokens, dim]`
        of the whole packed batch, float32.
        """
        q, k, v = (x[:, self.tokens].transpose(0, 1).contiguous() for x in (queries, keys, values))
        q = q * call.scaling
        out = torch.empty(len(self.tokens), q.shape[1], v.shape[-1])
        sink_logits = torch.empty(0) if call.sink_logits is None else call.sink_logits
        _decode(
            q.numpy(),
            rotate(q).numpy(),
            k.numpy(),
            v.numpy(),
            self.positions,
            self.windows,
            self.first,
            self.pages,
            place,
            self.sinks,
            NO_WINDOW if call.window is None else call.window,
            np.float32(call.softcap or 0),
            sink_logits.numpy(),
            out.numpy(),
        )
        return out


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


@_compiled(fastmath=True)
def _score(scores: Floats, queries: Floats, t: int, key: Floats) -> None:
    for g in range(queries.shape[0]):
        total = np.float32(0)
        for d in range(key.shape[0]):
            total += queries[g, d] * key[d]
        scores[g, t] = total


@_compiled(fastmath=True)
def _add(acc: Floats, weights: Floats, t: int, value: Floats) -> None:
    for g in range(acc.shape[0]):
        weight = weights[g, t]
        for d in range(value.shape[0]):
            acc[g, d] += weight * value[d]


@_compiled(fastmath=True)
def _expand(row: Floats, codes: Any, bits: int) -> None:
    """Codes of one token as float32: a byte each, or two halves of the head in one byte."""
    num = codes.shape[0]
    if bits == 8:
        for d in range(num):
            row[d] = np.float32(codes[d])
    else:
        for d in range(num):
            row[d] = np.float32(codes[d] & 15)
        for d in range(num):
            row[num + d] = np.float32(codes[d] >> 4)


@_compiled(fastmath=True)
def _score_packed(
    scores: Floats,
    folded: Floats,
    queries: Floats,
    codes: Any,
    scale: Any,
    minimum: Any,
    num: int,
    bits: int,
    row: Floats,
) -> None:
    """Scores of a packed page: fold the channel scales into the query, add the minima's share."""
    for t in range(num):
        _expand(row, codes[t], bits)
        if t == 0:
            for g in range(queries.shape[0]):
                for d in range(queries.shape[1]):
                    folded[g, d] = queries[g, d] * _HALF[scale[d]]
        _score(scores, folded, t, row)
    for g in range(queries.shape[0]):
        offset = np.float32(0)
        for d in range(queries.shape[1]):
            offset += queries[g, d] * _HALF[minimum[d]]
        for t in range(num):
            scores[g, t] += offset


@_compiled(fastmath=True)
def _add_packed(
    acc: Floats,
    weights: Floats,
    codes: Any,
    scale: Any,
    minimum: Any,
    num: int,
    bits: int,
    row: Floats,
) -> None:
    """Add a packed page's values: a token's scale goes into its weight, its minimum to all."""
    for g in range(acc.shape[0]):
        offset = np.float32(0)
        for t in range(num):
            offset += weights[g, t] * _HALF[minimum[t]]
            weights[g, t] *= _HALF[scale[t]]
        for d in range(acc.shape[1]):
            acc[g, d] += offset
    for t in range(num):
        _expand(row, codes[t], bits)
        _add(acc, weights, t, row)


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
                scores[g, t] = -np.inf


@_compiled(fastmath=True)
def _soften(scores: Floats, num: int, top: Floats, total: Floats, acc: Floats) -> None:
    """Turn scores into weights against the highest so far; rescale what was summed before."""
    for g in range(scores.shape[0]):
        new_top = top[g]
        for t in range(num):
            new_top = max(new_top, scores[g, t])
        shrink = np.exp(top[g] - new_top)
        top[g] = new_top
        page_total = np.float32(0)
        for t in range(num):
            scores[g, t] = np.exp(scores[g, t] - new_top)
            page_total += scores[g, t]
        total[g] = total[g] * shrink + page_total
        for d in range(acc.shape[1]):
            acc[g, d] *= shrink


@_compiled(fastmath=True)
def _read_full(
    work: Any, queries: Floats, at: Any, num: int, sizes: Any, view: Any, softcap: float
) -> None:
    """Attend to a page as the model made it."""
    scores, _, _, top, total, acc = work
    base, h = at
    num_heads, size, kd, vd = sizes
    keys = carray(_pointer(base + h * size * kd * 4), (size, kd), np.float32)
    values_at = base + (num_heads * kd + h * vd) * size * 4
    values = carray(_pointer(values_at), (size, vd), np.float32)
    for t in range(num):
        _score(scores, queries, t, keys[t])
    _weigh(scores, num, view, softcap, top, total, acc)
    for t in range(num):
        _add(acc, scores, t, values[t])


@_compiled(fastmath=True)
def _read_packed(
    work: Any, queries: Floats, at: Any, side: int, num: int, sizes: Any, view: Any, softcap: float
) -> None:
    """Attend to a packed page: codes at `at`, scales and minima at `side`."""
    scores, folded, row, top, total, acc = work
    base, h = at
    num_heads, size, kd, vd = sizes
    bits = 8 if size == _INT8_TOKENS else 4
    kw, vw = kd * bits // 8, vd * bits // 8
    keys = carray(_pointer(base + h * size * kw), (size, kw), np.uint8)
    values = carray(_pointer(base + (num_heads * kw + h * vw) * size), (size, vw), np.uint8)
    key_scale = carray(_pointer(side + h * kd * 2), kd, np.uint16)
    key_min = carray(_pointer(side + (num_heads + h) * kd * 2), kd, np.uint16)
    side += num_heads * kd * 4
    value_scale = carray(_pointer(side + h * size * 2), size, np.uint16)
    value_min = carray(_pointer(side + (num_heads + h) * size * 2), size, np.uint16)
    _score_packed(scores, folded, queries, keys, key_scale, key_min, num, bits, row)
    _weigh(scores, num, view, softcap, top, total, acc)
    _add_packed(acc, scores, values, value_scale, value_min, num, bits, row)


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


@_compiled(nogil=True)
def _decode(
    queries: Floats,
    rotated: Floats,
    keys: Floats,
    values: Floats,
    positions: Integers,
    windows: Integers,
    first: Integers,
    pages: Integers,
    place: int,
    sinks: int,
    own_window: int,
    softcap: float,
    sink_logits: Floats,
    out: Floats,
) -> None:
    num_heads, kd, vd = keys.shape[1], keys.shape[2], values.shape[2]
    group = queries.shape[1] // num_heads
    for item in range(queries.shape[0] * num_heads):
        r, h = item // num_heads, item % num_heads
        mine = slice(h * group, (h + 1) * group)
        scores = np.empty((group, BLOCK_TOKENS), np.float32)
        folded = np.empty((group, kd), np.float32)
        row = np.empty(max(kd, vd), np.float32)
        top, total = np.empty(group, np.float32), np.zeros(group, np.float32)
        acc = np.zeros((group, vd), np.float32)
        work = (scores, folded, row, top, total, acc)
        top[:] = -np.inf
        _score(scores, queries[r, mine], 0, keys[r, h])  # the new token itself is always seen
        _weigh(scores, 1, (positions[r], 0, 0, 0), softcap, top, total, acc)
        _add(acc, scores, 0, values[r, h])
        own_from, from_ = positions[r] - own_window + 1, positions[r] - windows[r] + 1
        for p in range(first[r], first[r + 1]):
            address, side, bits, start = pages[p]
            size = _FULL_TOKENS if bits == 32 else _INT8_TOKENS if bits == 8 else BLOCK_TOKENS
            num = min(size, positions[r] - start)
            if num <= 0 or start + num <= own_from or (start >= sinks and start + num <= from_):
                continue
            at = (address + place * num_heads * (kd + vd) * size * bits // 8, h)
            sizes, view = (num_heads, size, kd, vd), (start, own_from, from_, sinks)
            if bits == 32:
                _read_full(work, queries[r, mine], at, num, sizes, view, softcap)
            else:
                used = queries[r, mine] if bits == 8 else rotated[r, mine]
                side += place * num_heads * (kd + BLOCK_TOKENS) * 4
                _read_packed(work, used, at, side, num, sizes, view, softcap)
        for g in range(group):
            if sink_logits.size > 0:
                total[g] += np.exp(sink_logits[h * group + g] - top[g])
            for d in range(vd):
                out[r, h * group + g, d] = acc[g, d] / total[g]
