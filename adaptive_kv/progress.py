"""How far something slow has come: told by whoever works, shown by whoever waits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Unit = Literal["bytes", "tokens", "seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`done` of `total` units; `total` is None while nobody can say how much it will be."""

    task: str
    """What is done, in a few words, the same ones from its beginning to its end."""
    done: float = 0
    total: float | None = None
    unit: Unit = "seconds"


Tell = Callable[[Progress], None]
"""Called in whichever thread works; must not block."""


def untold(_: Progress) -> None:
    """For work that nobody waits for."""
