"""Which kernels answer for a group of layers on a device: the one place where that is chosen."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from adaptive_kv.attention import gpu
from adaptive_kv.attention.gpu_lists import Row as Chunk
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache.store import GroupPages
from adaptive_kv.cache.table import PageTable

__all__ = ["Chunk", "DecodeRows", "Rows", "has_chunks", "make_chunks", "make_decodes"]


class Rows(Protocol):
    """Rows of a batch that a kernel answers, as `cpu.DecodeRows` and `gpu.DecodeRows` say."""

    def attend(
        self,
        call: LayerCall,
        place: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
    ) -> None:
        """Attention of layer `place` of the group, into the rows' places in `out`.

        `queries` `[query_heads, tokens, key_dim]`, `keys` and `values` `[kv_heads, tokens, dim]`,
        `out` `[tokens, query_heads, value_dim]`: of the whole packed batch, in the group's type.
        """
        ...


class DecodeRows(Rows, Protocol):
    """Rows that decode, of one token or a few; what is new of them is also written into pages."""

    @property
    def tables(self) -> tuple[PageTable, ...]:
        """The rows' pages."""
        ...

    def advance(self) -> None:
        """The same rows, one token later; for those of one token each."""
        ...


def max_decoded(pages: GroupPages) -> int:
    """The most new tokens of a row that `make_decodes` takes."""
    if pages.pages.device.type != "cpu" or gpu.can_serve(pages.group, pages.pages.device):
        return 1
    from adaptive_kv.attention import cpu  # noqa: PLC0415 - loads Numba, which takes a while

    return cpu.MAX_NEW


def make_decodes(
    pages: GroupPages, rows: Sequence[tuple[int, int, int | None, PageTable, int]], sinks: int
) -> DecodeRows | None:
    """Of (place in the batch, position, the mode's window, pages, number of tokens) by row.

    None where no kernel serves the group. Raises `torch.OutOfMemoryError`.
    """
    if gpu.can_serve(pages.group, pages.pages.device):
        return gpu.make_rows(pages, [row[:4] for row in rows], sinks)
    if pages.pages.device.type == "cpu":
        from adaptive_kv.attention import cpu  # noqa: PLC0415 - loads Numba, which takes a while

        if cpu.can_serve(pages.group, pages.pages.device):
            return cpu.make_rows(pages, rows, sinks)
    return None


def has_chunks(pages: GroupPages) -> bool:
    """Whether a kernel answers rows of many tokens, too."""
    return gpu.can_serve_chunks(pages.group, pages.pages.device)


def make_chunks(pages: GroupPages, rows: Sequence[Chunk], sinks: int) -> Rows:
    """Of rows of many tokens, where `has_chunks`. Raises `torch.OutOfMemoryError`."""
    return gpu.make_chunks(pages, rows, sinks)
