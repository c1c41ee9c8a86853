"""What a GPU keeps of page tables: for every row and format a list of where its pages are.

    rows    | token, how many, position, window, full list, its length, int8 list, ... |
    list    | keys, values, scales, scales, position |   one line per page

Lists live as long as the sequence's pages stay as they are, and are appended to in place as pages
come: what a step sends are its rows and the lines of new pages, all in one copy. A list that is
full is replaced by one of twice the room; rows say where it is, so no kernel is started otherwise.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adaptive_kv.attention.interface import NO_WINDOW
from adaptive_kv.cache.formats.lines import BITS_AT
from adaptive_kv.cache.table import PageTable
from adaptive_kv.sending import to_device

_PAGES_AT_ONCE = 4
"""So many full pages are worth a split, as one packed page is."""

_LINE_WORDS = 5
_MIN_LINES = 64
_LINES_AT_ONCE = 128

Integers = npt.NDArray[np.int64]


class Row(NamedTuple):
    """Tokens of a sequence in the packed batch, and where what came before them is."""

    token: int
    """The first one's place in the batch."""
    num_new: int
    position: int
    window: int | None
    """The mode's."""
    table: PageTable | None
    """None where nothing is stored."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Rows on the device, int64 `[rows, gpu_kernel.COLUMNS]`, and which lists are not empty."""

    rows: Tensor
    has_int8: bool
    has_int4: bool
    num_blocks: int
    """How many splits the longest row has work for."""


@functools.cache
def kernels() -> Any:
    """The module of kernels; loads Triton."""
    from adaptive_kv.attention import gpu_kernel  # noqa: PLC0415 - only where it is wanted

    return gpu_kernel


def send(rows: Sequence[Row], full_bits: int, device: torch.device) -> Sent:
    """Bring lists up to date with the rows' page tables. Raises `torch.OutOfMemoryError`."""
    with forgetting([row.table for row in rows]):
        new, numbers = take_in(rows, full_bits, device)
        everything = np.concatenate([new.ravel(), numbers.ravel()])
        sent = to_device(everything, device, torch.int64)
        put(sent, len(new))
    num_full, num_int8, num_int4 = numbers[:, 5], numbers[:, 7], numbers[:, 9]
    return Sent(
        rows=sent[new.size :].view(numbers.shape),
        has_int8=bool(num_int8.any()),
        has_int4=bool(num_int4.any()),
        num_blocks=int((num_full // _PAGES_AT_ONCE + num_int8 + num_int4).max()),
    )


@contextmanager
def forgetting(tables: Sequence[PageTable | None]) -> Iterator[None]:
    """Where this fails, what the device knows of the tables is forgotten: it may be too little."""
    try:
        yield
    except RuntimeError:
        for table in tables:
            if table is not None:
                table.mirror = None
        raise


def take_in(rows: Sequence[Row], full_bits: int, device: torch.device) -> tuple[Integers, Integers]:
    """Lines that lists lack, each behind the address it is to be `put` to, and the rows' numbers.

    The lists count as complete from now on. Raises `torch.OutOfMemoryError`.
    """
    lines: list[Integers] = [np.empty((0, 1 + _LINE_WORDS), np.int64)]
    numbers = []
    for row in rows:
        places = [0] * 6
        if row.table is not None:
            mirror = _mirror(row.table, device)
            lines += mirror.take_in(row.table.lines)
            places = [number for bits in (full_bits, 8, 4) for number in mirror.place(bits)]
        window = NO_WINDOW if row.window is None else row.window
        numbers.append([row.token, row.num_new, row.position, window, *places])
    return np.concatenate(lines), np.array(numbers, np.int64)


def put(lines: Tensor, num_lines: int) -> None:
    """Write the first so many of what `take_in` gave, now on the device, to where they belong."""
    if num_lines:
        grid = (-(-num_lines // _LINES_AT_ONCE),)
        kernels().put_lines[grid](lines, num_lines, _LINES_AT_ONCE)


def _mirror(table: PageTable, device: torch.device) -> "_Mirror":
    if not isinstance(table.mirror, _Mirror):
        table.mirror = _Mirror(device)
    return table.mirror


@dataclass(slots=True)
class _List:
    lines: Tensor
    num: int = 0


@dataclass(slots=True)
class _Mirror:
    """The lists of one page table, by bits per element; handed on as the table grows."""

    device: torch.device
    num_lines: int = 0
    lists: dict[int, _List] = field(default_factory=dict)

    def take_in(self, lines: Integers) -> list[Integers]:
        """Count new lines in; returns them, each behind the address that it is to be put to."""
        new = lines[self.num_lines :]
        self.num_lines = len(lines)
        formats = new[:, BITS_AT]
        return [self._append(int(bits), new[formats == bits]) for bits in np.unique(formats)]

    def place(self, bits: int) -> tuple[int, int]:
        """Address and length of a list."""
        known = self.lists.get(bits)
        return (0, 0) if known is None else (known.lines.data_ptr(), known.num)

    def _append(self, bits: int, new: Integers) -> Integers:
        known = self.lists.get(bits)
        if known is None:
            known = self.lists[bits] = _List(self._empty(_MIN_LINES))
        if known.num + len(new) > len(known.lines):
            larger = self._empty(1 << (known.num + len(new) - 1).bit_length())
            larger[: known.num] = known.lines[: known.num]
            known.lines = larger
        first = known.lines.data_ptr() + known.num * _LINE_WORDS * 8
        known.num += len(new)
        to = first + np.arange(len(new)) * _LINE_WORDS * 8
        return np.column_stack([to, new[:, [0, 1, 2, 3, 5]]])

    def _empty(self, room: int) -> Tensor:
        return torch.empty(room, _LINE_WORDS, dtype=torch.int64, device=self.device)
