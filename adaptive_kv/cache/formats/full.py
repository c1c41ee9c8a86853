"""full: keys and values as the model made them.

pieces of every layer and head:  | K: token, dim |   | V: token, dim |
"""

from torch import Tensor

from adaptive_kv.cache.formats.base import Run
from adaptive_kv.cache.geometry import PAGE_TOKENS_16_BIT, LayerGroup
from adaptive_kv.cache.slab import Slab


class Full:
    """The only format that new tokens are written in."""

    name = "full"
    is_packed = False

    def __init__(self, group: LayerGroup) -> None:
        self._group = group
        self.tokens_per_page = PAGE_TOKENS_16_BIT * 2 // group.dtype.itemsize

    def read(self, run: Run, layers: slice) -> tuple[Tensor, Tensor]:
        """As `Format.read`."""
        keys, values = (view[layers][:, :, run.index] for view in self.views(run.slab))
        return keys.flatten(2, 3), values.flatten(2, 3)

    def write(self, run: Run, keys: Tensor, values: Tensor) -> None:
        """As `Format.write`."""
        pages = (-1, self.tokens_per_page)
        for view, rows in zip(self.views(run.slab), (keys, values), strict=True):
            view[:, :, run.index] = rows.unflatten(2, pages)

    def append(
        self, slab: Slab, layer: int, places: tuple[Tensor, Tensor], kv: tuple[Tensor, Tensor]
    ) -> None:
        """Write one layer's rows for single tokens, anywhere in the pages of one slab.

        `places` are page index and token within the page, int64 `[tokens]`; `kv` are keys and
        values `[tokens, kv_heads, dim]`; `layer` counts within the group.
        """
        index, token = places
        for view, rows in zip(self.views(slab), kv, strict=True):
            view[layer, :, index, token] = rows.transpose(0, 1)

    def views(self, slab: Slab) -> tuple[Tensor, ...]:
        """Keys and values of a slab, `[layers, kv_heads, pages, tokens_per_page, dim]` each."""
        return slab.view(self.name, self._make_views)

    def _make_views(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        dtype, rows = self._group.dtype, (self.tokens_per_page, -1)
        return keys.view(dtype).unflatten(-1, rows), values.view(dtype).unflatten(-1, rows)
