"""Memory that is really in use, of the host or of a CUDA device."""

import mmap
from typing import Protocol

CHUNK_BYTES = 4 * 2**20
"""Memory is taken and given back in pieces of this size."""
_PAGE_BYTES = 4096


class Memory(Protocol):
    """Memory of one device that is really in use."""

    def take(self) -> None:
        """Take one chunk and touch it."""
        ...

    def give(self) -> None:
        """Give the newest chunk back to the device."""
        ...

    @property
    def num_chunks(self) -> int:
        """How many chunks are held."""
        ...


class HostMemory:
    """Anonymous memory, every page of it written to."""

    def __init__(self) -> None:
        self._chunks: list[mmap.mmap] = []

    def take(self) -> None:
        """Take one chunk and touch it."""
        chunk = mmap.mmap(-1, CHUNK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        chunk[::_PAGE_BYTES] = b"\x5a" * (CHUNK_BYTES // _PAGE_BYTES)
        self._chunks.append(chunk)

    def give(self) -> None:
        """Give the newest chunk back to the device."""
        self._chunks.pop().close()

    @property
    def num_chunks(self) -> int:
        """How many chunks are held."""
        return len(self._chunks)


class CudaMemory:
    """Memory of the first CUDA device."""

    def __init__(self) -> None:
        import torch  # noqa: PLC0415 - only where there is a CUDA device

        self._torch = torch
        self._chunks: list[torch.Tensor] = []

    def take(self) -> None:
        """Take one chunk and touch it."""
        # Allocations from 10 MiB on are not shared between chunks, nor smaller than asked for.
        chunk = self._torch.empty(4 * CHUNK_BYTES, dtype=self._torch.uint8, device="cuda")
        self._chunks.append(chunk.fill_(0x5A))

    def give(self) -> None:
        """Give the newest chunk back to the device."""
        self._chunks.pop()
        self._torch.cuda.empty_cache()

    @property
    def num_chunks(self) -> int:
        """How many chunks are held, in `CHUNK_BYTES`."""
        return 4 * len(self._chunks)
