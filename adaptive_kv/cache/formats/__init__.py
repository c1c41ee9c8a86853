"""How one page's bytes are laid out and read. A format owns its bytes: nobody else indexes a page.

Adding a format is one file here and its branch in each kernel.
"""

import functools

from adaptive_kv.cache.formats.base import Format
from adaptive_kv.cache.formats.full import Full
from adaptive_kv.cache.formats.int4 import Int4
from adaptive_kv.cache.formats.int8 import Int8
from adaptive_kv.cache.geometry import LayerGroup

__all__ = ["FORMAT_NAMES", "LAYOUT_VERSION", "Format", "Full", "make_formats"]

FORMAT_NAMES = ("full", "int8", "int4")
"""From the most exact to the densest."""

LAYOUT_VERSION = 1
"""Raise it when a format loses more or less than before: models are then calibrated again."""


@functools.cache
def make_formats(group: LayerGroup) -> dict[str, Format]:
    """Every format, for pages of this group; they hold no state."""
    return {"full": Full(group), "int8": Int8(group), "int4": Int4(group)}
