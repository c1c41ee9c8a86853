"""Decode attention on CPU, fused over pages of every format, without a compiler on the box.

One call answers one layer for all rows that decode a single token. Pages are read where they lie,
through their addresses.

The kernel runs in the worker's thread and releases the interpreter, so that HTTP goes on beside it.
Numba's own thread pools wait by spinning, which made a step seven times slower as soon as another
program wanted the same cores.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptive_kv.attention.cpu_kernel import Integers, can_widen_half, decode
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache.formats.int4 import rotate
from adaptive_kv.cache.geometry import LayerGroup

NO_WINDOW = 1 << 40
"""Stands for a window that hides nothing."""

_NO_LOGITS = np.empty(0, np.float32)
_CAN_WIDEN_HALF = can_widen_half()


def can_serve(group: LayerGroup, device: torch.device) -> bool:
    """Whether the kernel reads pages of this group."""
    return device.type == "cpu" and group.dtype is torch.float32 and _CAN_WIDEN_HALF


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows of the batch that decode one token each, and where their pages are, for one group.

    `tokens` are their places in the packed batch; `positions` those of their new tokens; row `r`
    owns `pages[first[r]:first[r + 1]]`, each a line (address, side address, bits, start), among
    them the full page that is reserved for the new token. `windows` are the modes' windows,
    `NO_WINDOW` where there is none.
    """

    group: LayerGroup
    tokens: Integers
    positions: Integers
    windows: Integers
    first: Integers
    pages: Integers
    sinks: int

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
        has_rotated = bool((self.pages[:, 2] == 4).any())
        sink_logits = _NO_LOGITS if call.sink_logits is None else call.sink_logits.float().numpy()
        decode(
            q.numpy(),
            rotate(q).numpy() if has_rotated else q.numpy(),
            k.numpy(),
            v.numpy(),
            self.tokens,
            self.positions,
            self.windows,
            self.first,
            self.pages,
            place,
            self.sinks,
            NO_WINDOW if call.window is None else call.window,
            np.float32(call.scaling),
            np.float32(call.softcap or 0),
            sink_logits,
            out.numpy(),
        )
