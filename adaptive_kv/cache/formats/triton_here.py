"""Whether Triton's kernels can run, found out when they are first wanted.

Triton comes with torch on CUDA boxes; where it does not, everything runs in plain torch.
"""

import functools
import importlib
import importlib.util
import os
from typing import Any

import structlog
import torch

from adaptive_kv.cache.geometry import LayerGroup

_log = structlog.get_logger(__name__)


def can_handle(group: LayerGroup, device: torch.device, max_dim: int) -> bool:
    """Whether kernels that know heads of up to `max_dim` can be started on pages of a group.

    Under Triton's interpreter the device is the CPU, and float32 is known too: exact arithmetic
    tells a wrong kernel from a rounded result. On a GPU its tiles would not stay in registers.
    """
    dims = group.key_dim, group.value_dim
    if any(dim > max_dim or dim % 8 for dim in dims):
        return False
    if is_interpreted():
        return device.type == "cpu" and _is_installed()
    return device.type == "cuda" and group.dtype.itemsize == 2 and _is_installed()


def is_interpreted() -> bool:
    """Whether `TRITON_INTERPRET` has kernels run in numpy, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def type_of(dtype: torch.dtype) -> Any:
    """Triton's name for a type of pages."""
    language: Any = importlib.import_module("triton.language")
    return getattr(language, str(dtype).removeprefix("torch."))


@functools.cache
def _is_installed() -> bool:
    is_there = importlib.util.find_spec("triton") is not None
    if not is_there:
        _log.warning("no_triton", instead="plain torch, which is slow on a GPU")
    return is_there
