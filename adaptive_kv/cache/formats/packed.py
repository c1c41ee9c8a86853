"""What int8 and int4 share: asymmetric codes with 16-bit scales and minima beside the page.

Keys have one scale per channel over the page's tokens, values one per token over the channels
(KIVI, arXiv 2402.02750). Codes are rounded against the scales as stored, so that reading gives
back exactly what was rounded to.

    pieces of every layer and head:  | K codes: dim, token |      | V codes: token, dim |
    and of scales:                   | K scale: dim | K min |     | V scale: token | V min |
"""

import torch
from torch import Tensor

from adaptive_kv.cache.formats.base import Run
from adaptive_kv.cache.geometry import PAGE_TOKENS_16_BIT, LayerGroup
from adaptive_kv.cache.slab import Slab

_SMALLEST_SCALE = 6e-8  # float16's smallest step: a constant channel still divides
_LARGEST = 65504.0  # float16's: what lies beyond is cut off rather than made infinite


class Packed:
    """Pages of `bits`-bit codes."""

    name: str
    bits: int
    is_packed = True

    def __init__(self, group: LayerGroup) -> None:
        self._group = group
        self.tokens_per_page = PAGE_TOKENS_16_BIT * 16 // self.bits

    def read(self, run: Run, layers: slice) -> tuple[Tensor, Tensor]:
        """As `Format.read`."""
        key_codes, value_codes = self._code_views(run.slab)
        sides = [view[layers][:, :, _side_index(run)] for view in self._side_views(run)]
        dtype = self._group.dtype
        keys = _dequantize(self._unpack(key_codes[layers][:, :, run.index]), *sides[:2])
        keys = self._unrotate(keys).flatten(2, 3).to(dtype)
        values = _dequantize(self._unpack(value_codes[layers][:, :, run.index]), *sides[2:])
        return keys, values.flatten(2, 3).to(dtype)

    def write(self, run: Run, keys: Tensor, values: Tensor) -> None:
        """As `Format.write`."""
        pages = (-1, self.tokens_per_page)
        keys = self._rotate(keys.float()).unflatten(2, pages)
        values = values.float().unflatten(2, pages)
        key_codes, key_scale, key_min = _quantize(keys, self.bits, dim=3)
        value_codes, value_scale, value_min = _quantize(values, self.bits, dim=4)
        for view, codes in zip(self._code_views(run.slab), (key_codes, value_codes), strict=True):
            view[:, :, run.index] = self._pack(codes)
        sides = (key_scale, key_min, value_scale, value_min)
        for view, side in zip(self._side_views(run), sides, strict=True):
            view[:, :, _side_index(run)] = side

    def _rotate(self, keys: Tensor) -> Tensor:
        return keys

    def _unrotate(self, keys: Tensor) -> Tensor:
        return keys

    def _pack(self, codes: Tensor) -> Tensor:
        return codes

    def _unpack(self, codes: Tensor) -> Tensor:
        return codes

    def _code_views(self, slab: Slab) -> tuple[Tensor, ...]:
        return slab.view(self.name, self._make_code_views)

    def _make_code_views(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        # Kernels score many tokens at a time, channel by channel.
        channels = keys.unflatten(-1, (-1, self.tokens_per_page))
        return channels.transpose(3, 4), values.unflatten(-1, (self.tokens_per_page, -1))

    def _side_views(self, run: Run) -> tuple[Tensor, ...]:
        assert run.side is not None
        return run.side.view(self.name, self._make_side_views)

    def _make_side_views(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """Four views `[layers, kv_heads, pages, 1 or tokens, dim or 1]`, float16."""
        num_tokens = self.tokens_per_page
        key_parts = keys.view(torch.float16).unflatten(-1, (2, 1, -1)).unbind(3)
        value_parts = values.view(torch.float16)[..., : 2 * num_tokens]
        return *key_parts, *value_parts.unflatten(-1, (2, num_tokens, 1)).unbind(3)


def _side_index(run: Run) -> Tensor:
    assert run.side_index is not None
    return run.side_index


def _dequantize(codes: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    return codes.float().mul_(scale).add_(minimum)  # in float32, whatever the scales are kept in


def _quantize(rows: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (uint8), scale and minimum (float16) of float32 `rows`, one pair along `dim`."""
    low, high = (found.clamp(-_LARGEST, _LARGEST) for found in rows.aminmax(dim=dim, keepdim=True))
    levels = 2**bits - 1
    minimum = _half_below(low)
    scale = ((high - minimum.float()) / levels).half().clamp_min(_SMALLEST_SCALE)
    codes = ((rows - minimum.float()) / scale.float()).round_().clamp_(0, levels)
    return codes.to(torch.uint8), scale, minimum


def _half_below(rows: Tensor) -> Tensor:
    """The nearest float16 that is not above: a minimum that is would cut off what lies below."""
    near = rows.half()
    below = torch.nextafter(near, torch.full_like(near, -torch.inf))
    return torch.where(near.float() > rows, below, near)
