"""What settled sequences weigh, remembered: policies may ask for every mode before every step.

Past some length every further block of tokens weighs the same, so a length is folded back to there
and what that weighs is computed once. Dropping goes in whole blocks, too: a sequence with a gap
after its sinks weighs what one does that is shorter by the gap.
"""

from collections.abc import Sequence
from dataclasses import replace

from adaptive_kv.cache.costs import page_bytes, regular_from
from adaptive_kv.cache.geometry import BLOCK_TOKENS, Keep, LayerGroup
from adaptive_kv.cache.window import kept_from
from adaptive_kv.policy import CacheMode


class Weigher:
    """Equals `costs.sequence_bytes`, within a microsecond once a length was asked for."""

    def __init__(self, groups: Sequence[LayerGroup], keep: Keep) -> None:
        self._groups = tuple(groups)
        self._keep = keep
        self._by_mode: dict[CacheMode, list[_Group]] = {}

    def bytes(self, mode: CacheMode, num_tokens: int, gap_stops: Sequence[int]) -> int:
        """Bytes of all groups' pages; `gap_stops` by group, 0 where nothing was dropped."""
        return self.total_bytes(mode, (num_tokens,), (gap_stops,))

    def total_bytes(
        self, mode: CacheMode, lengths: Sequence[int], gap_stops: Sequence[Sequence[int]]
    ) -> int:
        """As `bytes`, of several sequences together."""
        groups = self._by_mode.get(mode)
        if groups is None:
            groups = [_Group(mode, group, self._keep) for group in self._groups]
            self._by_mode[mode] = groups
        total = 0
        for group, gaps in zip(groups, zip(*gap_stops, strict=True), strict=False):
            ungapped = group.ungapped
            remembered, start = ungapped.remembered, ungapped.regular_from
            for num_tokens, gap_stop in zip(lengths, gaps, strict=True):
                num_blocks = 0 if num_tokens < start else (num_tokens - start) // BLOCK_TOKENS
                known = None if gap_stop else remembered.get(num_tokens - num_blocks * BLOCK_TOKENS)
                if known is None:
                    total += group.bytes(num_tokens, gap_stop)
                else:
                    total += known + num_blocks * ungapped.block_bytes
        return total


class _Group:
    """One group of layers in one mode."""

    def __init__(self, mode: CacheMode, group: LayerGroup, keep: Keep) -> None:
        self._keep = keep
        self._window = group.window
        self.ungapped = _Memory(mode, group, keep)
        self._gapped = self.ungapped
        if group.window is not None:
            self._gapped = _Memory(mode, replace(group, window=None), keep)
        self._sinks_bytes = self._gapped.bytes(keep.sinks)

    def bytes(self, num_tokens: int, gap_stop: int) -> int:
        if gap_stop <= self._keep.sinks:
            return self.ungapped.bytes(num_tokens)
        length = num_tokens - (gap_stop - self._keep.sinks)
        if self._window is None:
            return self._gapped.bytes(length)
        if gap_stop <= kept_from(num_tokens, self._keep, self._window):
            return self.ungapped.bytes(num_tokens)
        # The model's own window drops nothing more than the gap, but for the sinks.
        hides_sinks = num_tokens - self._window + 1 >= self._keep.sinks
        return self._gapped.bytes(length) - hides_sinks * self._sinks_bytes


class _Memory:
    """Weights by length, each computed once."""

    def __init__(self, mode: CacheMode, group: LayerGroup, keep: Keep) -> None:
        self._what = mode, group, keep
        self.remembered: dict[int, int] = {}
        self.regular_from = start = regular_from(mode, (group,), keep)
        self.block_bytes = self.bytes(start + BLOCK_TOKENS - 1) - self.bytes(start - 1)

    def bytes(self, num_tokens: int) -> int:
        num_blocks = max(0, (num_tokens - self.regular_from) // BLOCK_TOKENS)
        folded = num_tokens - num_blocks * BLOCK_TOKENS
        num_bytes = self.remembered.get(folded)
        if num_bytes is None:
            mode, group, keep = self._what
            num_bytes = self.remembered[folded] = page_bytes(mode, folded, group, keep)
        return num_bytes + num_blocks * self.block_bytes if num_blocks else num_bytes
