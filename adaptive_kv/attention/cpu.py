"""Decode attention on CPU, fused over pages of every format, without a compiler on the box.

One call answers one layer for all rows that decode a single token. Pages are read where they lie,
through their addresses.

The kernel runs in the worker's thread and releases the interpreter, so that HTTP goes on beside it.
Numba's own thread pools wait by spinning, which made a step seven times slower as soon as another
program wanted the same cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptive_kv.attention.cpu_kernel import Integers, can_widen_half, decode
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache.formats.int4 import rotate
from adaptive_kv.cache.geometry import LayerGroup
from adaptive_kv.cache.table import PageTable

NO_WINDOW = 1 << 40
"""Stands for a window that hides nothing."""

_NO_LOGITS = np.empty(0, np.float32)
_CAN_WIDEN_HALF = can_widen_half()


def make_rows(
    group: LayerGroup, rows: Sequence[tuple[int, int, int | None, PageTable]], sinks: int
) -> "DecodeRows":
    """Of (place in the batch, position, the mode's window, pages) for every row."""
    lines = [
        (at, position, NO_WINDOW if window is None else window, table.address, len(table))
        for at, position, window, table in rows
    ]
    tables = tuple([table for *_, table in rows])
    has_rotated = any(table.has_rotated for table in tables)
    return DecodeRows(group, np.array(lines), tables, sinks, has_rotated)


def can_serve(group: LayerGroup, device: torch.device) -> bool:
    """Whether the kernel reads pages of this group."""
    return device.type == "cpu" and group.dtype is torch.float32 and _CAN_WIDEN_HALF


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows of the batch that decode one token each, and where their pages are, for one group.

    `rows` has a line for each: its place in the packed batch, the position of its new token, its
    mode's window (`NO_WINDOW` where there is none), address and length of its page table. Among
    the pages of the `tables` that it points to is the full one reserved for the new token.
    """

    group: LayerGroup
    rows: Integers
    tables: tuple[PageTable, ...]
    sinks: int
    has_rotated: bool
    """Whether some keys were rotated before they were packed."""

    def advance(self) -> None:
        """The same rows, one token later."""
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
        """Attention of layer `place` of the group, into the rows' places in `out`.

        `queries` `[query_heads, tokens, key_dim]`, `keys` and `values` `[kv_heads, tokens, dim]`,
        `out` `[tokens, query_heads, value_dim]`: of the whole packed batch, float32. The rows' keys
        and values are also written into the pages reserved for them.
        """
        # Models make these token by token: seen that way they are contiguous, no copy is made.
        q, k, v = (x.transpose(0, 1).contiguous() for x in (queries, keys, values))
        sink_logits = _NO_LOGITS if call.sink_logits is None else call.sink_logits.float().numpy()
        decode(
            q.numpy(),
            rotate(q).numpy() if self.has_rotated else q.numpy(),
            k.numpy(),
            v.numpy(),
            self.rows,
            place,
            self.sinks,
            NO_WINDOW if call.window is None else call.window,
            np.float32(call.scaling),
            np.float32(call.softcap or 0),
            sink_logits,
            out.numpy(),
        )
