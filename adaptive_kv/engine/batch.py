"""What one forward does, and what it may lack."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from adaptive_kv.attention.batch import Row
from adaptive_kv.engine.scheduler import Chunk


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A step that did not happen: what it asked for in vain, free pages or the device's memory."""

    needed_bytes: int
    is_of_pages: bool = False
    is_by_limit: bool = False
    """Whether our own limits were in the way, and not a device that may answer otherwise soon."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Chunks of sequences, their rows in the ragged batch, and whether each sees an exact past."""

    chunks: tuple[Chunk, ...]
    rows: tuple[Row, ...]
    are_exact: tuple[bool, ...]

    @property
    def sampled(self) -> list[Chunk]:
        """The chunks after which a token is sampled."""
        return [chunk for chunk in self.chunks if chunk.is_last]

    @property
    def is_healing(self) -> bool:
        """Whether idle capacity is used in it."""
        return any(chunk.is_healing for chunk in self.chunks)

    @property
    def longest(self) -> int:
        """Tokens of the longest context in it."""
        return max(chunk.position + chunk.num_new for chunk in self.chunks)

    def layout(self) -> tuple[list[int], list[int], list[int]]:
        """Packed token ids, their positions, and the rows whose logits are wanted."""
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for chunk in self.chunks:
            stop = chunk.position + chunk.num_new
            ids += chunk.sequence.tokens[chunk.position : stop]
            positions += range(chunk.position, stop)
            if chunk.is_last:
                last.append(len(ids) - 1)
        return ids, positions, last


def make_batch(chunks: Seq[Chunk]) -> Batch:
    """The batch of chunks whose pages are reserved."""
    rows = tuple(Row(c.cache, c.position, c.num_new) for c in chunks)
    return Batch(tuple(chunks), rows, tuple(row.is_exact for row in rows))


def roll_back(chunks: Seq[Chunk]) -> None:
    """Give back what was reserved for chunks that did not run."""
    for chunk in chunks:
        chunk.cache.roll_back()


def check_shortage(error: RuntimeError) -> None:
    """Raise any error again that does not say that memory ran out."""
    is_cpu_allocator = "can't allocate memory" in str(error)
    if not isinstance(error, torch.OutOfMemoryError) and not is_cpu_allocator:
        raise error
