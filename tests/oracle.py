"""What the next logits must be, by stock transformers, for a sequence in any mode.

A shadow keeps one sequence's keys and values by position. What enters it comes from the stock
model; a page that was newly packed must lie near to it and then replaces it, and every other page
must equal it. The stock model is then fed what the shadow holds of the kept positions, under a
mask written out token by token.
"""

import inspect
from typing import Any

import torch
from driver import Live
from models import relative_error
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from adaptive_kv.cache.page import Page
from adaptive_kv.cache.table import make_run

FULL_TOLERANCE = 2e-5
_PACKED_TOLERANCE = {"int8": 0.01, "int4": 0.2}


class Shadow:
    """Keys and values of one sequence as they should be, `[kv_heads, tokens, dim]` per layer."""

    def __init__(self, stock: PreTrainedModel) -> None:
        self._stock = stock
        # Its name since transformers 5.24, and before.
        names = inspect.signature(stock.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._kv: dict[int, tuple[Tensor, Tensor]] = {}
        self._packed: dict[tuple[int, int], str] = {}

    def next_logits(self, live: Live, num_new: int) -> Tensor:
        """Logits after the next `num_new` tokens of `live`, to be called before they run."""
        cache, first = live.cache, live.cache.num_stored
        if cache.mode.is_disabled or first == 0:
            self._kv.clear()
            self._packed.clear()
        past = DynamicCache()
        masks = {}
        new = torch.arange(first, first + num_new)
        for number, pages in enumerate(cache.store.groups):
            table = [page for page in cache.pages(number) if page.num_tokens]
            kept = torch.tensor([p for page in table for p in range(page.start, page.stop)]).long()
            own = pages.group.window
            masks["full_attention" if own is None else "sliding_attention"] = self._mask(
                live, new, torch.cat([kept, new]), own
            )
            for layer in pages.group.layers:
                if len(kept):
                    k, v = (rows[:, kept] for rows in self._kv[layer])
                    _put(past, layer, k, v)
        return self._forward(live, new, past, masks)

    def check_pages(self, live: Live) -> None:
        """Every page of `live` holds what it should."""
        for number, pages in enumerate(live.cache.store.groups):
            for page in live.cache.pages(number):
                if page.num_tokens:
                    keys, values = pages.formats[page.format].read(
                        make_run(pages, [page]), slice(None)
                    )
                    self._check_page(number, page, pages.group.layers, keys, values)

    def _check_page(
        self, group: int, page: Page, layers: tuple[int, ...], keys: Tensor, values: Tensor
    ) -> None:
        part = slice(page.start, page.stop)
        is_new = page.format != "full" and self._packed.get((group, page.start)) != page.format
        limit = _PACKED_TOLERANCE[page.format] if is_new else FULL_TOLERANCE
        for place, layer in enumerate(layers):
            for shadow, found in zip(self._kv[layer], (keys[place], values[place]), strict=True):
                rows = found[:, : page.num_tokens]
                assert relative_error(rows, shadow[:, part]) <= limit
                if is_new:
                    shadow[:, part] = rows
        if is_new:
            for start in range(page.start, page.stop, 8):
                self._packed[group, start] = page.format

    def _mask(self, live: Live, new: Tensor, keys: Tensor, own_window: int | None) -> Tensor:
        """`[1, 1, new, keys]`, additive: what each new token may see."""
        mode, sinks = live.cache.mode, live.cache.store.keep.sinks
        distance = new[:, None] - keys[None, :]
        seen = distance >= 0
        if own_window is not None:
            seen &= distance < own_window
        if mode.window is not None:
            seen &= (distance < mode.window) | (keys < sinks)
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]

    def _forward(
        self, live: Live, new: Tensor, past: DynamicCache, masks: dict[str, Tensor]
    ) -> Tensor:
        ids = torch.tensor([live.ids[int(new[0]) : int(new[-1]) + 1]])
        with torch.no_grad():
            out = self._stock(
                input_ids=ids,
                position_ids=new[None],
                attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
                use_cache=True,
                **{self._cache_name: past},
            )
        stored: Any
        for layer, stored in enumerate(past.layers):
            fresh = [rows[0, :, -len(new) :].clone() for rows in (stored.keys, stored.values)]
            old = self._kv.get(layer)
            pairs = zip(old, fresh, strict=True) if old is not None else ((rows,) for rows in fresh)
            keys, values = (torch.cat(pair, 1) for pair in pairs)
            self._kv[layer] = keys, values
        logits: Tensor = out.logits[0, -1]
        return logits


def _put(past: DynamicCache, layer: int, keys: Tensor, values: Tensor) -> None:
    past.update(keys[None].clone(), values[None].clone(), layer)
