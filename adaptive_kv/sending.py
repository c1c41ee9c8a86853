"""Numbers of a step on their way to the device, without anybody waiting for them.

A copy from ordinary memory makes the host wait until the GPU has done all that came before. From
pinned memory it is only noted down; torch keeps that memory until the copy is done.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(
    numbers: Sequence[Any] | npt.NDArray[Any], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """A tensor of `numbers` on the device. On a CPU an array of this type is not copied."""
    is_array = isinstance(numbers, np.ndarray)
    here = torch.from_numpy(numbers) if is_array else torch.tensor(numbers, dtype=dtype)
    assert here.dtype == dtype
    if device.type == "cuda":
        here = here.pin_memory()
    return here.to(device, non_blocking=True)
