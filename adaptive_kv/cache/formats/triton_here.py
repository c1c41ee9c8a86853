"""Whether Triton's kernels can run, found out when they are first wanted.

Triton comes with torch on CUDA boxes. It compiles kernels by itself, but once on each box a few
lines of C, for which it wants a compiler and Python's headers. Where anything is missing,
everything runs in plain torch, and the log says why.
"""

import functools
import importlib
import logging
import os
from typing import Any

import torch

from adaptive_kv.cache.geometry import LayerGroup

_log = logging.getLogger(__name__)  # pages need no more than torch


def can_handle(group: LayerGroup, device: torch.device, max_dim: int) -> bool:
    """Whether kernels that know heads of up to `max_dim` can be started on pages of a group.

    Under Triton's interpreter the device is the CPU, and float32 is known too: exact arithmetic
    tells a wrong kernel from a rounded result. On a GPU its tiles would not stay in registers.
    """
    dims = group.key_dim, group.value_dim
    if any(dim > max_dim or dim % 8 for dim in dims):
        return False
    if is_interpreted():
        return device.type == "cpu"
    return device.type == "cuda" and group.dtype.itemsize == 2 and _can_start()


def is_interpreted() -> bool:
    """Whether `TRITON_INTERPRET` has kernels run in numpy, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def type_of(dtype: torch.dtype) -> Any:
    """Triton's name for a type of pages."""
    language: Any = importlib.import_module("triton.language")
    return getattr(language, str(dtype).removeprefix("torch."))


@functools.cache
def _can_start() -> bool:
    try:
        driver: Any = importlib.import_module("triton.runtime.driver")
        driver.active.get_current_target()  # builds what it needs
    except Exception as error:  # noqa: BLE001 - a compiler's faults are of any kind
        _log.warning("kernels for the GPU cannot start, plain torch is slower: %s", error)
        return False
    return True
