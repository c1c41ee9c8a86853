"""Taking turns: whatever else the machine does slows all contenders of a round alike.

Ratios are taken within a round, and medians over the rounds.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn took: tokens of all sequences, seconds on the clock and of the process."""

    num_tokens: int
    wall_s: float
    cpu_s: float


class TakesTurns(Protocol):
    """Whoever can be measured against others."""

    def take_turn(self, num_tokens: int) -> Turn:
        """Decode `num_tokens` more for every sequence."""
        ...


ContenderT = TypeVar("ContenderT", bound=TakesTurns)


def take_turns(
    contenders: Mapping[str, ContenderT], num_rounds: int, num_tokens: int
) -> dict[str, list[Turn]]:
    """Turns by contender, as many as rounds; who goes first changes from round to round."""
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    for number in range(num_rounds):
        for name in in_turn(list(contenders), number):
            turns[name].append(contenders[name].take_turn(num_tokens))
    return turns


def in_turn(names: Sequence[str], round_number: int) -> list[str]:
    """Who is measured in which order in a round."""
    first = round_number % len(names) if names else 0
    return [*names[first:], *names[:first]]


def speed(turns: Sequence[Turn]) -> dict[str, float]:
    """Medians, on the clock and in CPU time."""
    wall = statistics.median(turn.num_tokens / turn.wall_s for turn in turns)
    cpu = statistics.median(turn.num_tokens / turn.cpu_s for turn in turns)
    return {"tokens_per_s": round(wall, 2), "tokens_per_cpu_s": round(cpu, 2)}


def ratio(ours: Sequence[Turn], theirs: Sequence[Turn]) -> dict[str, float]:
    """How many times as fast we were, on the clock and in CPU time."""
    pairs = list(zip(ours, theirs, strict=True))
    work = [one.num_tokens / other.num_tokens for one, other in pairs]
    wall = [w * b.wall_s / a.wall_s for w, (a, b) in zip(work, pairs, strict=True)]
    cpu = [w * b.cpu_s / a.cpu_s for w, (a, b) in zip(work, pairs, strict=True)]
    return {"wall": round(statistics.median(wall), 3), "cpu": round(statistics.median(cpu), 3)}


def ratios(
    turns: Mapping[str, Sequence[Turn]], ours: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """By each of ours and everyone else, ours included: how many times as fast."""
    return {
        name: {other: ratio(turns[name], turns[other]) for other in turns if other != name}
        for name in ours
    }
