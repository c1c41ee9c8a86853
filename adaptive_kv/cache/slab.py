"""Slabs: large pieces of device memory, taken one at a time and given back at once.

On CUDA a slab is an allocation of its own, large enough that `empty_cache` returns it to the
driver. On CPU it is an anonymous map: dropping it returns the memory to the system at once.
"""

import math
import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from adaptive_kv.cache.geometry import PageShape


class MemoryLimitError(torch.OutOfMemoryError):
    """What the device would say, said by our own limits: the budget, or the guard's floor."""

    def __init__(self, what: str, needed_bytes: int, left_bytes: int) -> None:
        super().__init__(f"out of memory: {what} needs {needed_bytes} bytes, {left_bytes} are left")
        self.needed_bytes = needed_bytes
        self.left_bytes = left_bytes


class Budget:
    """Counts what this process takes and refuses what would go over its limits.

    `limit_bytes` caps weights + slabs + workspace for good (None: no cap), so that any device
    behaves like a small GPU. `allowance_bytes` is what the guard lets slabs take from the device
    until its next reading (None: not limited); below it, only what is given back by more may be
    taken, in exchange. `reclaimable_bytes` of the slabs hold what nobody uses: they count as room,
    and `reclaim` gives that much back.
    """

    def __init__(self, limit_bytes: int | None = None, weights_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.allowance_bytes: int | None = None
        self._given_bytes = 0
        self.weights_bytes = weights_bytes
        self.cache_bytes = 0
        self.reclaimable_bytes = 0
        self.reclaim: Callable[[int], None] = lambda _: None
        self.workspace_bytes = 0
        self.peak_cache_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Weights, slabs and the workspace of the present step."""
        return self.weights_bytes + self.cache_bytes + self.workspace_bytes

    @property
    def kept_bytes(self) -> int:
        """Weights and slabs: what is in use between steps."""
        return self.weights_bytes + self.cache_bytes

    @property
    def left_bytes(self) -> float:
        """How much more the limit permits to take."""
        if self.limit_bytes is None:
            return math.inf
        return self.limit_bytes - self.used_bytes + self.reclaimable_bytes

    def room_bytes(self, reserve_bytes: int = 0) -> float:
        """How much slabs may still take if `reserve_bytes` of workspace are to fit besides."""
        room_bytes = self.left_bytes - reserve_bytes
        if self.allowance_bytes is not None:
            room_bytes = min(room_bytes, self.allowance_bytes + self.reclaimable_bytes)
        return max(0, room_bytes)

    def allow(self, num_bytes: int) -> None:
        """A new reading: so much may be taken from now on."""
        self.allowance_bytes = num_bytes
        self._given_bytes = 0

    @contextmanager
    def workspace(self, num_bytes: int) -> Iterator[None]:
        """Reserve what a step will need besides pages. Raises `torch.OutOfMemoryError`."""
        if (missing_bytes := self._missing_bytes(num_bytes)) > 0:
            self.reclaim(missing_bytes)
        self._check("the step's workspace", num_bytes)
        self.workspace_bytes += num_bytes
        try:
            yield
        finally:
            self.workspace_bytes -= num_bytes

    def take_slab(self, num_bytes: int, *, is_exchange: bool = False) -> None:
        """Count a slab in; `is_exchange` where it serves to give back more.

        Raises `torch.OutOfMemoryError` where a limit would be broken.
        """
        self._check("a slab", num_bytes)
        if self.allowance_bytes is not None:
            most_bytes = max(self.allowance_bytes, self._given_bytes if is_exchange else 0)
            if num_bytes > most_bytes:
                raise MemoryLimitError("a slab above the floor", num_bytes, self.allowance_bytes)
            self.allowance_bytes -= num_bytes
        self._given_bytes -= num_bytes
        self.cache_bytes += num_bytes
        self.peak_cache_bytes = max(self.peak_cache_bytes, self.cache_bytes)

    def give_slab(self, num_bytes: int) -> None:
        """Count a slab out."""
        self.cache_bytes -= num_bytes
        self._given_bytes += num_bytes
        if self.allowance_bytes is not None:
            self.allowance_bytes += num_bytes

    def _check(self, what: str, num_bytes: int) -> None:
        if (missing_bytes := self._missing_bytes(num_bytes)) > 0:
            raise MemoryLimitError(what, num_bytes, max(0, num_bytes - missing_bytes))

    def _missing_bytes(self, num_bytes: int) -> int:
        """How much of it would go over the limit at this moment."""
        return 0 if self.limit_bytes is None else self.used_bytes + num_bytes - self.limit_bytes


class Slab:
    """`num_pages` pages of one shape, and how many of them are live.

        layer 0                                     | layer 1
        | K of head 0: p0 p1 p2 | K of head 1: ... | V of head 0: p0 p1 p2 | ...

    The same pieces of all pages lie side by side: whoever reads the pages of a sequence, layer by
    layer and head by head, reads memory in long runs. `keys` and `values` are uint8 `[layers,
    heads, num_pages, bytes of a piece]`. Formats keep typed views of them in `views`; they end with
    the slab.
    """

    __slots__ = ("_map", "address", "keys", "num_live", "values", "views")

    def __init__(self, shape: PageShape, num_pages: int, device: torch.device) -> None:
        num_bytes = num_pages * shape.num_bytes
        self._map: mmap.mmap | None = None
        self.num_live = 0
        self.views: dict[str, tuple[Tensor, ...]] = {}
        with _outlives_inference():
            if device.type == "cpu":
                self._map = _map_anonymous(num_bytes)
                flat = torch.frombuffer(self._map, dtype=torch.uint8)
            else:
                flat = torch.empty(num_bytes, dtype=torch.uint8, device=device)
            layers, heads = flat.view(shape.num_layers, -1), (shape.num_heads, num_pages)
            border = math.prod(heads) * shape.key_bytes
            self.keys = layers[:, :border].unflatten(1, (*heads, shape.key_bytes))
            self.values = layers[:, border:].unflatten(1, (*heads, shape.value_bytes))
        self.address = flat.data_ptr()

    def view(
        self, key: str, make: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What a format makes of keys and values, made once."""
        views = self.views.get(key)
        if views is None:
            with _outlives_inference():
                views = self.views[key] = make(self.keys, self.values)
        return views

    def copy_page(self, index: int, other: "Slab", other_index: int) -> None:
        """Fill a page with one of another slab, or of this one."""
        self.keys[:, :, index] = other.keys[:, :, other_index]
        self.values[:, :, index] = other.values[:, :, other_index]

    def release(self) -> None:
        """Give the memory back to the device now; the slab must not be used again."""
        device = self.keys.device
        self.views.clear()
        del self.keys, self.values
        if self._map is not None:
            # A tensor that still refers to the map keeps its addresses, not its memory.
            self._map.madvise(mmap.MADV_DONTNEED)
            self._map = None
        elif device.type == "cuda":
            torch.cuda.empty_cache()


def _outlives_inference() -> AbstractContextManager[None]:
    """Tensors made in inference mode could never be written outside it."""
    return torch.inference_mode(mode=False)


def _map_anonymous(num_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryLimitError("a slab", num_bytes, 0) from error
