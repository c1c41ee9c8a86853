"""Numba's compiler, where layers look for it."""

from adaptive_kv.jit import jit

__all__ = ["jit"]
