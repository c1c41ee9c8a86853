"""full: keys and values as the model made them.

page, one layer after the other:  | K: head, token, dim | V: head, token, dim |
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

    def _make_views(self, payload: Tensor) -> tuple[Tensor, ...]:
        group, num_tokens = self._group, self.tokens_per_page
        flat = payload.view(group.dtype).unflatten(1, (group.num_layers, -1))
        return split_rows(flat, group, num_tokens, group.key_dim, group.value_dim)


def split_rows(
    flat: Tensor, group: LayerGroup, num_tokens: int, key_dim: int, value_dim: int
) -> tuple[Tensor, Tensor]:
    """`[pages, layers, K then V]` as two views `[layers, kv_heads, pages, num_tokens, dim]`."""
    heads = group.num_kv_heads
    num_key = heads * num_tokens * key_dim
    keys = flat[..., :num_key].unflatten(-1, (heads, num_tokens, key_dim))
    values = flat[..., num_key : num_key + heads * num_tokens * value_dim]
    values = values.unflatten(-1, (heads, num_tokens, value_dim))
    return keys.permute(1, 2, 0, 3, 4), values.permute(1, 2, 0, 3, 4)
