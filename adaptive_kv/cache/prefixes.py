"""Prefixes that sequences share: blocks of full, exact pages, found by the tokens up to their end.

    tokens      | sinks | 64 tokens | 64 tokens | 64 tokens | too few for a block: never shared
    names       |  n0   |    n1     |    n2     |    n3     | each of its tokens and the name before
    sequence A  |  b0   |    b1     |    b2     | its own pages
    sequence B  |  b0   |    b1     | its own pages
    retained                                    |    b3     | of one that has ended

Blocks end where spans of a plan may end. So those who share a block share what becomes of it, too:
its pages are converted once for all, into the most exact format that any of them wants. Nothing is
ever copied: whoever leaves a block to others needs no memory for it.

What nobody holds any more is retained, and counts as free: it goes, the oldest first, before any
page is refused.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

from adaptive_kv.cache.geometry import BLOCK_TOKENS, Keep, LayerGroup
from adaptive_kv.cache.page import Page
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.span import Span
from adaptive_kv.cache.window import unseen_until
from adaptive_kv.policy import CacheMode

_NAME_BYTES = 16
_FULL = CacheMode("full")


class Holder(Protocol):
    """A sequence's cache, as those see it that it shares blocks with."""

    @property
    def mode(self) -> CacheMode:
        """How it should be kept."""
        ...

    def plan(self, group: int) -> list[Span]:
        """What its mode wants of its tokens."""
        ...

    def put(self, group: int, old: Sequence[Page], new: Sequence[Page]) -> None:
        """Have `new` pages where the adjacent `old` ones are."""
        ...

    def reconsider(self) -> None:
        """Somebody has left a block that it shares."""
        ...


@dataclass(slots=True, eq=False)
class Block:
    """The pages of one group of layers for one block of tokens, and who holds them."""

    group: int
    name: bytes
    pages: list[Page]
    holders: list[Holder] = field(default_factory=list)
    """The first one is whom its bytes are counted with."""

    @property
    def start(self) -> int:
        """The position of its first token."""
        return self.pages[0].start


class Names:
    """The names of a sequence's blocks, by number; `tokens` may grow at its end."""

    def __init__(self, tokens: Sequence[int], keep: Keep) -> None:
        self.tokens = tokens
        self._first = keep.sinks or BLOCK_TOKENS
        self._known: list[bytes] = []

    def __getitem__(self, number: int) -> bytes:
        """A chained hash: equal where this block and all before it are of equal tokens."""
        for known in range(len(self._known), number + 1):
            tokens = self.tokens[self.stop(known - 1) : self.stop(known)]
            before = self._known[-1] if self._known else b""
            name = blake2b(before + array("q", tokens).tobytes(), digest_size=_NAME_BYTES)
            self._known.append(name.digest())
        return self._known[number]

    def stop(self, number: int) -> int:
        """Where a block ends; 0 for the number before the first."""
        return self._first + number * BLOCK_TOKENS if number >= 0 else 0

    def num_whole(self, num_tokens: int) -> int:
        """How many blocks so many tokens fill."""
        return max(0, 1 + (num_tokens - self._first) // BLOCK_TOKENS)


class Prefixes:
    """All blocks that a new sequence may begin with; `give` frees pages of a group.

    What is retained is counted in `budget.reclaimable_bytes`.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        keep: Keep,
        budget: Budget,
        give: Callable[[int, Iterable[Page]], None],
    ) -> None:
        self._groups = tuple(groups)
        self._keep = keep
        self._budget = budget
        self._give = give
        self._known: list[dict[bytes, Block]] = [{} for _ in groups]
        self._retained: dict[Block, None] = {}  # the oldest first

    def find(self, names: Names, first: int) -> tuple[int, list[list[Block]]]:
        """The blocks from number `first` on that begin the same tokens: up to which, and by group.

        One token is left to be computed. Where the model's own window hides them by then, blocks
        are missing at the front.
        """
        rows: list[list[Block | None]] = []
        begins = since = [first] * len(self._groups)
        last = first
        for number in range(first, names.num_whole(len(names.tokens) - 1)):
            row = [known.get(names[number]) for known in self._known]
            if any(b is None and g.window is None for b, g in zip(row, self._groups, strict=True)):
                break
            rows.append(row)
            begins = [
                begin if block is not None else number + 1
                for block, begin in zip(row, begins, strict=True)
            ]
            gap_stops = [0 if begin == first else names.stop(begin - 1) for begin in begins]
            if self._are_unseen(gap_stops, names.stop(number)):
                last, since = number + 1, begins
        return last, [
            [b for row in rows[begin - first : last - first] if (b := row[group]) is not None]
            for group, begin in enumerate(since)
        ]

    def num_shared(self, names: Names, mode: CacheMode) -> int:
        """How many of its first tokens weigh nothing for a newcomer in `mode` who takes them over.

        That is where somebody holds them who goes on to want them no smaller than that. What is
        retained takes room once it is somebody's again; what windows drop is left to the last one.
        """
        if mode.window or mode.is_disabled:
            return 0
        last, blocks_by_group = self.find(names, 0)
        if mode.page_format != "full":  # the newest tokens it wants larger than others may
            last = min(last, names.num_whole(len(names.tokens) - self._keep.recent))
        stops = (
            block.start
            for blocks in blocks_by_group
            for block in blocks
            if all(holder.mode not in (_FULL, mode) for holder in block.holders)
        )
        return min([names.stop(last - 1), *stops])

    def enter(self, group: int, name: bytes, pages: list[Page], holder: Holder) -> Block | None:
        """Let others find whole pages of `holder`; answers the block that was there before."""
        before = self._known[group].get(name)
        if before is None:
            block = self._known[group][name] = Block(group, name, pages, [holder])
            for page in pages:
                page.block = block
        return before

    def share(self, block: Block, holder: Holder) -> None:
        """Count `holder` among those who hold a block."""
        if block in self._retained:
            self._count_out(block)
        block.holders.append(holder)

    def leave(self, holder: Holder, pages: Iterable[Page]) -> list[Page]:
        """What is nobody's once `holder` has left these pages; of a block it leaves them all."""
        pages = list(pages)
        nobodys = [page for page in pages if page.block is None]
        for block in dict.fromkeys(page.block for page in pages if page.block is not None):
            block.holders.remove(holder)
            for other in block.holders:
                other.reconsider()
            if not block.holders:
                self._hide(block)
                nobodys += block.pages
        return nobodys

    def replace(self, old: Sequence[Page], new: Sequence[Page]) -> list[Holder]:
        """Adjacent pages are converted: who has to put `new` ones in their place; none if unshared.

        A block of which anything was converted is no longer found.
        """
        block = old[0].block
        if block is None:
            return []
        self._hide(block)
        at = block.pages.index(old[0])
        block.pages[at : at + len(old)] = new
        for page in new:
            page.block = block
        return block.holders

    def retain(self, holder: Holder, pages: Iterable[Page]) -> set[Block]:
        """Keep what only `holder` holds and others may begin with; answers what that is."""
        blocks = dict.fromkeys(page.block for page in pages if page.block is not None)
        mine = [block for block in blocks if block.holders == [holder] and self._is_found(block)]
        # What comes later in a prefix is worth nothing without what comes before.
        for block in sorted(mine, key=lambda block: block.start, reverse=True):
            block.holders.clear()
            self._retained[block] = None
            self._budget.reclaimable_bytes += self._bytes(block)
        return set(mine)

    def release_oldest(self) -> bool:
        """Free a block that is retained; False where there is none."""
        block = next(iter(self._retained), None)
        if block is None:
            return False
        self._count_out(block)
        self._hide(block)
        self._give(block.group, block.pages)
        return True

    def shrink(self, max_bytes: float) -> None:
        """Retain no more than that."""
        while self._budget.reclaimable_bytes > max_bytes:
            self.release_oldest()

    def check(self) -> None:
        """Raise AssertionError if a block is not what it should be."""
        for group, known in enumerate(self._known):
            for name, block in known.items():
                assert (block.group, block.name) == (group, name)
                assert (block in self._retained) == (not block.holders), "nobody's, not retained"
                assert all(p.format == "full" and p.is_exact for p in block.pages)
                assert all(page.block is block for page in block.pages)
        assert all(self._is_found(block) for block in self._retained)
        retained_bytes = sum(map(self._bytes, self._retained))
        assert retained_bytes == self._budget.reclaimable_bytes, "retained bytes are miscounted"

    def _are_unseen(self, gap_stops: Iterable[int], num_tokens: int) -> bool:
        """Whether in every group the model hides what ends at `gap_stops` from the next token."""
        return all(
            gap_stop == 0
            or (group.window and gap_stop <= unseen_until(num_tokens, self._keep, group.window))
            for gap_stop, group in zip(gap_stops, self._groups, strict=True)
        )

    def _is_found(self, block: Block) -> bool:
        return self._known[block.group].get(block.name) is block

    def _hide(self, block: Block) -> None:
        if self._is_found(block):
            del self._known[block.group][block.name]

    def _count_out(self, block: Block) -> None:
        del self._retained[block]
        self._budget.reclaimable_bytes -= self._bytes(block)

    def _bytes(self, block: Block) -> int:
        return len(block.pages) * self._groups[block.group].page_bytes
