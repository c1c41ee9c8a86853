"""What the pages of one sequence weigh by its length, as a table that needs no model to be read.

Past some length bytes grow by the same amount every few tokens, because pages hold whole numbers
of tokens: a table up to there and that amount say everything, exactly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Curve:
    """Bytes of one settled sequence in one mode."""

    table: tuple[int, ...]
    """By number of tokens, 0 first."""
    period_tokens: int
    growth_bytes: int
    """Of every further period past the table."""

    def bytes(self, num_tokens: int) -> int:
        """What so many tokens weigh."""
        past = num_tokens - len(self.table) + 1
        if past <= 0:
            return self.table[num_tokens]
        num_periods = -(-past // self.period_tokens)
        start_bytes = self.table[num_tokens - num_periods * self.period_tokens]
        return start_bytes + num_periods * self.growth_bytes

    def steps(self) -> list[tuple[int, int]]:
        """The table as pairs: from so many tokens on, so many bytes."""
        return [
            (num_tokens, num_bytes)
            for num_tokens, num_bytes in enumerate(self.table)
            if num_tokens == 0 or num_bytes != self.table[num_tokens - 1]
        ]


def measure(weigh: Callable[[int], int], *, regular_from: int, period_tokens: int) -> Curve:
    """The curve of `weigh`, which is regular from `regular_from` tokens on."""
    last = regular_from + period_tokens
    table = tuple(weigh(num_tokens) for num_tokens in range(last))
    return Curve(table, period_tokens, weigh(last) - table[last - period_tokens])


def from_steps(
    steps: Sequence[Sequence[int]], num_tokens: int, period_tokens: int, growth_bytes: int
) -> Curve:
    """The curve whose table has `num_tokens` entries and these steps. Raises `ValueError`."""
    starts = [start for start, _ in steps]
    if starts[:1] != [0] or starts != sorted(set(starts)) or starts[-1] >= num_tokens:
        raise ValueError("the steps of a curve begin at 0 and rise within its table")
    if not 0 < period_tokens <= num_tokens:
        raise ValueError("the period of a curve is no longer than its table")
    table: list[int] = []
    for (start, num_bytes), stop in zip(steps, [*starts[1:], num_tokens], strict=True):
        table += [num_bytes] * (stop - start)
    return Curve(tuple(table), period_tokens, growth_bytes)
