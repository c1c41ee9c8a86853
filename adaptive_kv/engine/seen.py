"""What is seen of the running sequences at one moment; nothing of it changes afterwards."""

from collections.abc import Iterable

from adaptive_kv.engine.mailbox import Request
from adaptive_kv.engine.sequence import Sequence
from adaptive_kv.policy import CacheMode, SequenceInfo

_NOBODY: tuple[tuple[()], ...] = ((),) * 6


class Seen:
    """By sequence, in the order of the batch."""

    __slots__ = ("are_exact", "gap_stops", "lengths", "modes", "requests", "used_bytes")
    requests: tuple[Request, ...]
    lengths: tuple[int, ...]
    """In tokens, with the one that goes through the model next."""
    modes: tuple[CacheMode, ...]
    used_bytes: tuple[int, ...]
    are_exact: tuple[bool, ...]
    gap_stops: tuple[tuple[int, ...], ...]
    """As `SequenceCache.gap_stops`."""

    def __init__(self, running: Iterable[Sequence]) -> None:
        lines = [
            (
                sequence.request,
                len(sequence.tokens),
                sequence.mode,
                sequence.cache.used_bytes,
                sequence.is_exact,
                sequence.cache.gap_stops,
            )
            for sequence in running
        ]
        # One call in C for what is needed by the column: this is done before every step.
        columns = zip(*lines, strict=True) if lines else _NOBODY
        (
            self.requests,
            self.lengths,
            self.modes,
            self.used_bytes,
            self.are_exact,
            self.gap_stops,
        ) = columns

    def infos(self) -> tuple[SequenceInfo, ...]:
        """What a policy is shown."""
        columns = self.requests, self.lengths, self.modes, self.used_bytes, self.are_exact
        return tuple(
            [
                SequenceInfo(
                    id=request.id,
                    num_tokens=num_tokens,
                    mode=mode,
                    cache_bytes=used_bytes,
                    priority=request.priority,
                    allow=request.allow,
                    exact=is_exact,
                )
                for request, num_tokens, mode, used_bytes, is_exact in zip(*columns, strict=True)
            ]
        )
