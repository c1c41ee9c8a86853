"""Decode attention on CPU, fused over pages of every format, without a compiler on the box.

One call answers one layer for all rows of a single token or a few. Pages are read where they lie,
through their addresses.

The kernel releases the interpreter, so that HTTP goes on beside it. Where there is enough to read,
helpers share in it (`crew`). Numba's own thread pools wait by spinning, which made a step seven
times slower as soon as another program wanted the same cores.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptive_kv.attention.cpu_kernel import Integers, decode, vector_width
from adaptive_kv.attention.crew import crew
from adaptive_kv.attention.interface import NO_WINDOW, LayerCall
from adaptive_kv.cache.formats.cpu import KEPT_AS, can_widen_half, load_converters
from adaptive_kv.cache.formats.int4 import rotate
from adaptive_kv.cache.geometry import LayerGroup
from adaptive_kv.cache.store import GroupPages
from adaptive_kv.cache.table import PageTable

_WORTH_SHARING = 16_000
"""So many tokens times heads are read in the time that waking a helper takes."""

_NO_LOGITS = np.empty(0, np.float32)


MAX_NEW = 16
"""Rows of more tokens are quicker in plain torch, which reads their past once for all of them."""


def make_rows(
    pages: GroupPages, rows: Sequence[tuple[int, int, int | None, PageTable, int]], sinks: int
) -> "DecodeRows":
    """Of (place in the batch, position, the mode's window, pages, number of tokens) by row."""
    load_converters(pages.group)  # a switch must not wait for it
    lines = [
        (at, position, NO_WINDOW if window is None else window, table.address, len(table), num_new)
        for at, position, window, table, num_new in rows
    ]
    tables = tuple([table for *_, table, _ in rows])
    has_rotated = any(table.has_rotated for table in tables)
    num_seen = sum(min(position, window) * num_new for _, position, window, *_, num_new in lines)
    max_new = max(num_new for *_, num_new in lines)
    return DecodeRows(pages, np.array(lines), max_new, tables, sinks, num_seen, has_rotated)


def can_serve(group: LayerGroup, device: torch.device) -> bool:
    """Whether the kernel reads pages of this group."""
    is_known = group.dtype in KEPT_AS and len(_lanes(group)) > 0
    return device.type == "cpu" and is_known and can_widen_half()


@functools.cache
def _lanes(group: LayerGroup) -> tuple[int, ...]:
    """As long as the kernel's vectors."""
    return (0,) * min(vector_width(group.key_dim), vector_width(group.value_dim))


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows of the batch that have a few new tokens each, and their pages, for one group of layers.

    `rows` has a line for each: its place in the packed batch, the position of its first new token,
    its mode's window (`NO_WINDOW` where there is none), address and length of its page table, and
    how many new tokens it has, of which no row has more than `max_new`. Among the pages of the
    `tables` that it points to are the full ones reserved for them.
    """

    pages: GroupPages
    rows: Integers
    max_new: int
    tables: tuple[PageTable, ...]
    sinks: int
    num_seen: int
    """So many tokens all rows see together."""
    has_rotated: bool
    """Whether some keys were rotated before they were packed."""

    def advance(self) -> None:
        """The same rows of one token each, that token later."""
        self.rows[:, 1] += 1

    def attend(
        self,
        call: LayerCall,
        place: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
    ) -> None:
        """As `kernels.Rows.attend`; their keys and values are also written into their pages."""
        # Models make these token by token: seen that way they are contiguous, no copy is made.
        q, k, v = (x.transpose(0, 1).contiguous() for x in (queries, keys, values))
        q32, k32, v32, out32 = (x.float() for x in (q, k, v, out))
        group = self.pages.group
        lanes, kept_as = _lanes(group), KEPT_AS[group.dtype]
        sink_logits = _NO_LOGITS if call.sink_logits is None else call.sink_logits.float().numpy()
        work = functools.partial(
            decode,
            lanes,
            (0,) * (q.shape[1] // k.shape[1]),
            (0,) * (group.key_dim // len(lanes)),
            q32.numpy(),
            rotate(q32).numpy() if self.has_rotated else q32.numpy(),
            k32.numpy(),
            v32.numpy(),
            k.view(kept_as).numpy(),
            v.view(kept_as).numpy(),
            self.rows,
            self.max_new,
            place,
            self.pages.pages.pages_per_slab,
            self.pages.sides.pages_per_slab,
            self.sinks,
            NO_WINDOW if call.window is None else call.window,
            np.float32(call.scaling),
            np.float32(call.softcap or 0),
            sink_logits,
            out32.numpy(),
        )
        num_units = len(self.rows) * group.num_kv_heads
        if self.num_seen * group.num_kv_heads >= _WORTH_SHARING:
            crew().run(work, num_units)
        else:
            work(np.zeros(2, np.int64))
        if out32 is not out:
            out.copy_(out32)
