"""What attention's kernels are started with, by generation of GPUs: chosen here, not while serving.

`make gpu-check` measures on the GPU it runs on what else could be chosen, and prints the line that
`TABLE` would want where something else is faster.
"""

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Sizes that change how fast kernels are, and nothing else. Heads of up to 128."""

    decode_warps: int = 4
    """Of a program that decodes; larger heads have twice as many."""
    decode_stages: int = 3
    """How far it fetches ahead."""
    full_pages: int = 4
    """So many full pages are one tile."""
    programs_per_core: int = 2
    """Rows that decode are split until each multiprocessor has so many programs."""
    chunk_warps: int = 8
    """Of a program that answers rows of many tokens."""
    chunk_stages: int = 2
    chunk_tile: int = 32
    """Queries at a time, heads that share keys counted one by one."""


DEFAULT = Tuning()
"""Spills no register on any generation, by what the assembler says; nothing of it was measured."""

TABLE: dict[tuple[int, int], Tuning] = {}
"""By compute capability. Empty until somebody has measured: see docs/gpu.md."""


def tuning_of(device: torch.device) -> Tuning:
    """What to start kernels with on a device."""
    return TABLE.get(capability_of(device), DEFAULT)


@functools.cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Of a GPU; zeros for others."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
