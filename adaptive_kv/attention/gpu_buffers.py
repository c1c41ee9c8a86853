"""A step of one new token per row, told to the device in the same place every time.

    numbers | ids | positions | rows of group 0 | rows of group 1 | ...   int64, `max_rows` of each

Whoever was captured on a GPU reads what is written here, and what that points to: lists of pages,
which may lie anywhere (`gpu_lists`). So pages and slabs may come, go and change their format, and
sequences join and leave, without anything being captured again. Rows that are not there have no
token: they read no page and write none.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from adaptive_kv.attention import gpu, gpu_lists
from adaptive_kv.attention.batch import Row
from adaptive_kv.attention.gpu_lists import Integers
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import PageTable
from adaptive_kv.sending import to_device

_COLUMNS = 10
"""As `gpu_kernel.COLUMNS`; that module would load Triton."""
_POSITION, _NUM_INT8, _NUM_INT4 = 2, 7, 9


class StepBuffers:
    """Written once per step, in one copy. For stores whose pages are like those of `store`."""

    def __init__(self, store: PageStore, max_rows: int) -> None:
        self.max_rows = max_rows
        self._device = store.device
        self._full_bits = [pages.group.full_bits for pages in store.groups]
        self._host = np.zeros(max_rows * (2 + _COLUMNS * len(store.groups)), np.int64)
        self.numbers = torch.zeros(len(self._host), dtype=torch.int64, device=store.device)
        """On the device; never moves."""
        self._ids, self._positions, *self._rows = _sections(self._host, max_rows)
        self._followed: tuple[tuple[Row, object, tuple[PageTable, ...]], ...] = ()

    def views(self, num_rows: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Ids, positions and each group's rows on the device, of the first `num_rows`."""
        parts = self.numbers.split([2 * self.max_rows, len(self._host) - 2 * self.max_rows])
        ids, positions = parts[0].view(2, -1)[:, :num_rows]
        rows = parts[1].view(-1, self.max_rows, _COLUMNS)[:, :num_rows]
        return ids, positions, tuple(rows)

    def write(self, ids: Sequence[int], rows: Sequence[Row]) -> bool:
        """Say what the next step is, of one stored token per row; whether any page is packed.

        Pages of the rows must have been reserved. Raises `torch.OutOfMemoryError`.
        """
        tables = [tuple(map(row.cache.page_table, range(len(self._rows)))) for row in rows]
        with gpu_lists.forgetting([table for some in tables for table in some]):
            new = [] if self._follow(rows, tables) else self._take_in(rows, tables)
            self._ids[: len(rows)] = ids
            self._send(new)
        self._followed = tuple(
            (row, row.cache.mode, some) for row, some in zip(rows, tables, strict=True)
        )
        return any(bool(own[:, [_NUM_INT8, _NUM_INT4]].any()) for own in self._rows)

    def _follow(self, rows: Sequence[Row], tables: Sequence[tuple[PageTable, ...]]) -> bool:
        """One token later, where these are the next ones of the same sequences in the same pages.

        Most steps are.
        """
        followed, self._followed = self._followed, ()  # until this one is on its way
        if len(followed) != len(rows):
            return False
        for (old, mode, known), new, some in zip(followed, rows, tables, strict=True):
            if not new.is_next(old) or new.cache.mode is not mode or known != some:
                return False
        self._positions[: len(rows)] += 1
        for own in self._rows:
            own[: len(rows), _POSITION] += 1
        return True

    def _take_in(
        self, rows: Sequence[Row], tables: Sequence[tuple[PageTable, ...]]
    ) -> list[Integers]:
        """Any rows; lines that lists lack."""
        self._host[:] = 0
        self._positions[: len(rows)] = [row.position for row in rows]
        new = []
        for group, own in enumerate(self._rows):
            own[:, 0] = np.arange(self.max_rows)
            lines, own[: len(rows)] = gpu_lists.take_in(
                [
                    gpu_lists.Row(at, 1, row.position, row.cache.mode.window, some[group])
                    for at, (row, some) in enumerate(zip(rows, tables, strict=True))
                ],
                self._full_bits[group],
                self._device,
            )
            new.append(lines)
        return new

    def _send(self, new: Sequence[Integers]) -> None:
        """Everything in one copy, lines behind the numbers; with lines, those then move on."""
        lines = [self._host, *(some.ravel() for some in new if len(some))]
        sent = to_device(np.concatenate(lines), self._device, torch.int64)
        self.numbers.copy_(sent[: len(self._host)])
        gpu_lists.put(sent[len(self._host) :], sum(map(len, new)))


class FixedStep:
    """Answers every layer of a step that `StepBuffers` tell, for their first `num_rows` rows.

    What it starts on the device is the same for any rows, but that a page which is packed is only
    read where `has_packed`.
    """

    def __init__(
        self, buffers: StepBuffers, store: PageStore, num_rows: int, *, has_packed: bool
    ) -> None:
        _, _, rows = buffers.views(num_rows)
        self._place_of_layer = store.place_of_layer
        self._decodes = [
            gpu.make_fixed_rows(pages, own, store.keep.sinks, has_packed=has_packed)
            for pages, own in zip(store.groups, rows, strict=True)
        ]

    def attend(self, call: LayerCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As `interface.Step.attend`."""
        group, place = self._place_of_layer[call.layer]
        out = queries.new_empty(queries.shape[1], queries.shape[0], values.shape[-1])
        self._decodes[group].attend(call, place, queries, keys, values, out)
        return out


def can_fix(store: PageStore) -> bool:
    """Whether kernels that read from such buffers answer every layer."""
    return all(gpu.can_serve(pages.group, pages.pages.device) for pages in store.groups)


def _sections(host: Integers, max_rows: int) -> list[Integers]:
    """Views of the host's numbers: ids, positions, and each group's rows `[max_rows, columns]`."""
    ids, positions, rest = np.split(host, [max_rows, 2 * max_rows])
    return [ids, positions, *rest.reshape(-1, max_rows, _COLUMNS)]
