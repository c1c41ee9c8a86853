"""The shape of a model's cache: which layers share pages, and how large a page is."""

from dataclasses import dataclass

import torch

PAGE_TOKENS_16_BIT = 16
BLOCK_TOKENS = 64
"""Tokens of the densest page. Tokens are dropped in blocks of this many, counted from the end of
the sinks, so that what stays can always be packed and bytes are a function of length alone."""


@dataclass(frozen=True, slots=True)
class PageShape:
    """What a page consists of: a piece of keys and one of values for every layer and head."""

    num_layers: int
    num_heads: int
    key_bytes: int
    """Of one piece."""
    value_bytes: int

    @property
    def num_bytes(self) -> int:
        """Of the whole page."""
        return self.num_layers * self.num_heads * (self.key_bytes + self.value_bytes)


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers whose pages are alike; one page holds the same tokens of all of them.

    `key_dim` and `value_dim` are sizes of one head. `window` is the model's own sliding window in
    tokens, None for full attention.
    """

    layers: tuple[int, ...]
    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    window: int | None = None

    @property
    def num_layers(self) -> int:
        """How many layers share a page."""
        return len(self.layers)

    @property
    def row_elements(self) -> int:
        """Elements of one token's keys and values in one layer."""
        return self.num_kv_heads * (self.key_dim + self.value_dim)

    @property
    def full_bits(self) -> int:
        """Of an element as the model made it."""
        return self.dtype.itemsize * 8

    @property
    def page_shape(self) -> PageShape:
        """Of one page, the same in every format: 16 tokens in a 16-bit type."""
        token_bytes = PAGE_TOKENS_16_BIT * 2
        pieces = token_bytes * self.key_dim, token_bytes * self.value_dim
        return PageShape(self.num_layers, self.num_kv_heads, *pieces)

    @property
    def side_shape(self) -> PageShape:
        """Of the scales and minima beside one packed page (16 bits each, densest format)."""
        return PageShape(self.num_layers, self.num_kv_heads, 4 * self.key_dim, 4 * BLOCK_TOKENS)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.page_shape.num_bytes

    @property
    def side_bytes(self) -> int:
        """Bytes of the scales and minima of one packed page."""
        return self.side_shape.num_bytes


@dataclass(frozen=True, slots=True)
class Keep:
    """What no mode packs: `sinks` first tokens (no window drops them) and `recent` newest ones."""

    sinks: int = 16
    recent: int = 128

    def __post_init__(self) -> None:
        whole = -(-self.sinks // PAGE_TOKENS_16_BIT) * PAGE_TOKENS_16_BIT
        object.__setattr__(self, "sinks", whole)
