"""Lines of page tables, a page each: what kernels are handed, as `table.PageTable` describes it."""

import numpy as np
import numpy.typing as npt

Lines = npt.NDArray[np.int64]
"""`[pages, 6]`."""

BITS_AT = 4
"""Where a line has the bits of an element."""

_ROTATED_BITS = 4


def are_rotated(lines: Lines) -> npt.NDArray[np.bool_]:
    """By page, whether its keys were rotated before they were packed."""
    found: npt.NDArray[np.bool_] = lines[:, BITS_AT] == _ROTATED_BITS
    return found
