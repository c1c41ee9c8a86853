"""The ragged batch of one step: every sequence with its own length and its own mode.

    packed tokens   | a a a a a | b | c c c c c c c | d |      [1, total] through the model
    rows              prefill a   decode b  disabled c   decode d

Each row attends to what its sequence has in pages and to the row itself, then its keys and values
are written into the pages reserved for it. What is written counts only once the step commits.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_kv.attention import kernels, reference
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache import window
from adaptive_kv.cache.slab import Slab
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.sending import to_device


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one sequence in the batch: `num_new` of them from `position` on."""

    cache: SequenceCache
    position: int
    num_new: int

    @property
    def is_stored(self) -> bool:
        """Whether keys and values are kept after the step."""
        return not self.cache.mode.is_disabled

    def is_next(self, before: "Row") -> bool:
        """Whether this is the same sequence as `before`, one token later."""
        return self.cache is before.cache and self.position == before.position + 1

    @property
    def is_exact(self) -> bool:
        """Whether these tokens see everything before them as a fresh full run would."""
        return self.cache.is_exact_up_to(self.position + self.num_new)


@dataclass(frozen=True, slots=True)
class _Write:
    """Tokens of the batch that go into one slab: rows of the batch, pages and tokens in them."""

    slab: Slab
    rows: Tensor
    places: tuple[Tensor, Tensor]


class RaggedBatch:
    """Answers every layer of one forward. Pages of all rows must have been reserved."""

    def __init__(self, store: PageStore, rows: Sequence[Row], *, use_kernels: bool = True) -> None:
        self._store = store
        self._rows = tuple(rows)
        groups = range(len(store.groups))
        self._max_decoded = [kernels.max_decoded(pages) for pages in store.groups]
        self._decodes = [self._plan_decodes(g) if use_kernels else None for g in groups]
        self._others = [self._plan_others(g) for g in groups]
        self._chunks = [self._plan_chunks(g) if use_kernels else None for g in groups]
        self._writes = [self._plan_writes(g) for g in groups]
        self._is_all_decodes = None not in self._decodes and not any(self._others)
        self._modes = [row.cache.mode for row in rows]
        self._visible: dict[tuple[int, int, int | None], Tensor | None] = {}

    def follow(self, rows: Sequence[Row]) -> bool:
        """Become the batch of `rows` if these are only the next tokens of the same sequences.

        False where anything else has changed: pages, modes, who takes part. Most steps are alike.
        """
        if not self._is_all_decodes or len(rows) != len(self._rows):
            return False
        for old, new, mode in zip(self._rows, rows, self._modes, strict=True):
            if not new.is_next(old) or new.num_new != 1 or new.cache.mode is not mode:
                return False
        decodes = [decodes for decodes in self._decodes if decodes is not None]
        for group, known in enumerate(decodes):
            for row, table in zip(rows, known.tables, strict=True):
                if row.cache.page_table(group) is not table:
                    return False
        for known in decodes:
            known.advance()
        self._rows = tuple(rows)
        return True

    def attend(self, call: LayerCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As `interface.Step.attend`."""
        group, place = self._store.place_of_layer[call.layer]
        out = queries.new_empty(queries.shape[1], queries.shape[0], values.shape[-1])
        decodes = self._decodes[group]
        if decodes is not None:
            decodes.attend(call, place, queries, keys, values, out)
        chunks = self._chunks[group]
        if chunks is not None:
            chunks.attend(call, place, queries, keys, values, out)
        else:
            self._attend_others(call, group, place, queries, keys, values, out)
        self._write(group, place, keys, values)
        return out

    def _attend_others(
        self,
        call: LayerCall,
        group: int,
        place: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
    ) -> None:
        """In plain torch, one after the other."""
        for number, row, own in self._others[group]:
            k, v = self._with_past(row, group, place, keys[:, own], values[:, own])
            out[own] = reference.attend(
                queries[:, own],
                k,
                v,
                scaling=call.scaling,
                visible=self._visible_to(number, row, group, call.window),
                softcap=call.softcap,
                sink_logits=call.sink_logits,
            ).transpose(0, 1)

    def _with_past(
        self, row: Row, group: int, place: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Stored keys and values of one layer, then the row's own: `[kv_heads, tokens, dim]`."""
        past, num_past = row.cache.past(group), row.cache.num_kept(group)
        if not past.runs:
            return keys, values
        formats = self._store.groups[group].formats
        layer = slice(place, place + 1)
        parts = [formats[run.format].read(run, layer) for run in past.runs]
        # Only the newest page can be partly filled, so what is past the tokens is at the end.
        tail = num_past - sum(k.shape[2] for k, _ in parts[:-1])
        k_parts = [*(k[0] for k, _ in parts[:-1]), parts[-1][0][0, :, :tail], keys]
        v_parts = [*(v[0] for _, v in parts[:-1]), parts[-1][1][0, :, :tail], values]
        return torch.cat(k_parts, 1), torch.cat(v_parts, 1)

    def _visible_to(
        self, number: int, row: Row, group: int, own_window: int | None
    ) -> Tensor | None:
        """Who sees whom in a row, computed once per step and kind of layer."""
        key = (number, group, own_window)
        if key not in self._visible:
            self._visible[key] = self._compute_visible(row, group, own_window)
        return self._visible[key]

    def _compute_visible(self, row: Row, group: int, own_window: int | None) -> Tensor | None:
        stop = row.position + row.num_new
        mode_window = row.cache.mode.window
        sees_all = row.num_new == 1 and (own_window is None or stop <= own_window)
        if sees_all and (mode_window is None or stop <= mode_window):
            return None
        past = row.cache.past(group).positions[: row.cache.num_kept(group)]
        new = torch.arange(row.position, stop, device=past.device)
        return window.is_visible(
            new,
            torch.cat([past, new]),
            window=mode_window,
            sinks=self._store.keep.sinks,
            own_window=own_window,
        )

    def _write(self, group: int, place: int, keys: Tensor, values: Tensor) -> None:
        full = self._store.groups[group].full
        for write in self._writes[group]:
            rows = (keys[:, write.rows].transpose(0, 1), values[:, write.rows].transpose(0, 1))
            full.append(write.slab, place, write.places, rows)

    def _placed_rows(self) -> Iterator[tuple[int, Row, slice]]:
        """Every row with its number and its place in the packed batch."""
        first = 0
        for number, row in enumerate(self._rows):
            yield number, row, slice(first, first + row.num_new)
            first += row.num_new

    def _plan_others(self, group: int) -> list[tuple[int, Row, slice]]:
        """The rows that no decode kernel answers."""
        has_none = self._decodes[group] is None
        placed = self._placed_rows()
        return [one for one in placed if has_none or not self._is_decode(one[1], group)]

    def _is_decode(self, row: Row, group: int) -> bool:
        return row.is_stored and row.num_new <= self._max_decoded[group]

    def _plan_decodes(self, group: int) -> kernels.DecodeRows | None:
        """The rows that the kernel answers, with their pages; None where there are none."""
        pages = self._store.groups[group]
        rows = [
            (
                at.start,
                row.position,
                row.cache.mode.window,
                row.cache.page_table(group),
                row.num_new,
            )
            for _, row, at in self._placed_rows()
            if self._is_decode(row, group)
        ]
        return kernels.make_decodes(pages, rows, self._store.keep.sinks) if rows else None

    def _plan_chunks(self, group: int) -> kernels.Rows | None:
        """The other rows for a kernel; None where plain torch answers them."""
        pages, others = self._store.groups[group], self._others[group]
        if not others or not kernels.has_chunks(pages):
            return None
        rows = []
        for _, row, own in others:
            table = row.cache.page_table(group) if row.is_stored else None
            window = row.cache.mode.window
            rows.append(kernels.Chunk(own.start, row.num_new, row.position, window, table))
        return kernels.make_chunks(pages, rows, self._store.keep.sinks)

    def _plan_writes(self, group: int) -> list[_Write]:
        """Gather the tokens that no kernel writes by the slab that their reserved pages lie in."""
        pool = self._store.groups[group].pages
        by_slab: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for _, row, at in self._others[group]:
            if row.is_stored:
                places = row.cache.places(group, row.num_new)
                for token, (number, index, slot) in enumerate(places, at.start):
                    by_slab[number].append((token, index, slot))
        writes = []
        for number, found in by_slab.items():
            columns = to_device(found, pool.device, torch.int64).unbind(1)
            writes.append(_Write(pool.slab(number), columns[0], (columns[1], columns[2])))
        return writes
