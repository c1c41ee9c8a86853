"""int8: the first way down; half of a 16-bit page, near to lossless."""

from adaptive_kv.cache.formats.packed import Packed


class Int8(Packed):
    """One byte per element."""

    name = "int8"
    bits = 8
