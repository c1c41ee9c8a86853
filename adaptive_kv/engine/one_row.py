"""The product of a matrix with one row, in Numba: a linear layer while one sequence decodes.

Reading the weights once is all that it takes. Torch hands it to a routine for many rows, which
reads small weights at a quarter of what the processor's cache gives.
"""

from typing import Any

import numpy as np

from adaptive_kv.attention.jit import jit


@jit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def multiply_row(weight: Any, row: Any, out: Any) -> None:
    """Float32 `weight` `[out, in]` times `row` `[in]`, into `out`."""
    for o in range(weight.shape[0]):
        total = np.float32(0)
        for i in range(weight.shape[1]):
            total += row[i] * weight[o, i]
        out[o] = total
