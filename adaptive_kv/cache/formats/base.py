"""What every format can do."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from adaptive_kv.cache.slab import Slab


@dataclass(frozen=True, slots=True)
class Run:
    """Pages of one format in one slab, in the order of their tokens.

    `index` (int64 `[num_pages]`) are their places in `slab`; `side_index` those of their scales in
    `side`, for packed formats.
    """

    format: str
    slab: Slab
    index: Tensor
    side: Slab | None = None
    side_index: Tensor | None = None


class Format(Protocol):
    """Lays keys and values out in a page, and reads them back."""

    name: str
    tokens_per_page: int
    is_packed: bool
    """Whether pages need a place for scales in the side pool."""

    def read(self, run: Run, layers: slice) -> tuple[Tensor, Tensor]:
        """Keys `[layers, kv_heads, num_pages * tokens_per_page, key_dim]` and values alike.

        In the model's dtype; a partly filled last page reads as garbage past its tokens.
        """
        ...

    def write(self, run: Run, keys: Tensor, values: Tensor) -> None:
        """Fill whole pages of `run` from `[layers, kv_heads, tokens, dim]`, all layers at once."""
        ...
