"""Numba's compiler, keeping its results on disk where there is a place for them."""

import inspect
from collections.abc import Callable, Iterable
from hashlib import blake2b
from types import ModuleType
from typing import Any

from numba import njit


def jit(
    *, sources: Iterable[ModuleType] = (), **options: Any
) -> Callable[[Callable[..., Any]], Any]:
    """Compile at first use, and anew once any of `sources` has changed.

    By itself Numba looks for changes only in the file that a function stands in.
    """
    text = "".join(map(inspect.getsource, sources))
    digest = blake2b(text.encode(), digest_size=8).hexdigest()

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ += f"_{digest}"  # names the file on disk
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # Numba found no folder it may write to
            return njit(**options)(function)

    return decorate
