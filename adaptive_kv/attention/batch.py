"""The ragged batch of one step: every sequence with its own length and its own mode.

    packed tokens   | a a a a a | b | c c c c c c c | d |      [1, total] through the model
    rows              prefill a   decode b  disabled c   decode d

Each row attends to what its sequence has in pages and to the row itself, then its keys and values
are written into the pages reserved for it. What is written counts only once the step commits.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_kv.attention import reference
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache import window
from adaptive_kv.cache.slab import Slab
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import Past, SequenceCache


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

    @property
    def is_exact(self) -> bool:
        """Whether these tokens see everything before them as a fresh full run would."""
        sinks = self.cache.store.keep.sinks
        hides = window.hides_any(self.cache.mode.window, self.position + self.num_new, sinks)
        return self.cache.is_exact and not hides


@dataclass(frozen=True, slots=True)
class _Write:
    """Tokens of the batch that go into one slab: rows of the batch, pages and tokens in them."""

    slab: Slab
    rows: Tensor
    places: tuple[Tensor, Tensor]


class RaggedBatch:
    """Answers every layer of one forward. Pages of all rows must have been reserved."""

    def __init__(self, store: PageStore, rows: Sequence[Row]) -> None:
        self._store = store
        self._rows = tuple(rows)
        self._writes = [self._plan_writes(group) for group in range(len(store.groups))]
        self._visible: dict[tuple[int, int, int | None], Tensor | None] = {}

    def attend(self, call: LayerCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As `interface.Step.attend`."""
        group, place = self._store.place_of_layer[call.layer]
        out = queries.new_empty(queries.shape[1], queries.shape[0], values.shape[-1])
        first = 0
        for number, row in enumerate(self._rows):
            own = slice(first, first + row.num_new)
            past = row.cache.past(group)
            k, v = self._with_past(past, group, place, keys[:, own], values[:, own])
            out[own] = reference.attend(
                queries[:, own],
                k,
                v,
                scaling=call.scaling,
                visible=self._visible_to(number, row, group, call.window),
                softcap=call.softcap,
                sink_logits=call.sink_logits,
            ).transpose(0, 1)
            first = own.stop
        self._write(group, place, keys, values)
        return out

    def _with_past(
        self, past: Past, group: int, place: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Stored keys and values of one layer, then the row's own: `[kv_heads, tokens, dim]`."""
        if not past.runs:
            return keys, values
        formats = self._store.groups[group].formats
        layer, num_past = slice(place, place + 1), len(past.positions)
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
        past = row.cache.past(group).positions
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

    def _plan_writes(self, group: int) -> list[_Write]:
        """Gather the batch's tokens by the slab that their reserved pages lie in."""
        pool = self._store.groups[group].pages
        by_slab: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        first = 0
        for row in self._rows:
            if row.is_stored:
                places = row.cache.places(group, row.num_new)
                for token, (number, index, slot) in enumerate(places, first):
                    by_slab[number].append((token, index, slot))
            first += row.num_new
        writes = []
        for number, found in by_slab.items():
            columns = torch.tensor(found, device=pool.device).unbind(1)
            writes.append(_Write(pool.slab(number), columns[0], (columns[1], columns[2])))
        return writes
