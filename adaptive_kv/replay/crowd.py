"""The sequences of a replay: as long as recorded, in the modes that the policy gave them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from adaptive_kv.policy import CacheMode, SequenceInfo
from adaptive_kv.trace.header import Header
from adaptive_kv.trace.moment import Seen


@dataclass(slots=True, eq=False)
class Live:
    """One sequence. It is `running`, or waits for memory and keeps no pages."""

    number: int
    id: str
    mode: CacheMode
    priority: int
    allow: frozenset[CacheMode] | None
    since_s: float
    """It waits since then."""
    num_tokens: int = 0
    share: float = 0.0
    """Of its tokens, how many have pages yet: a prefill goes on for several moments."""
    gap_tokens: int = 0
    """Dropped by a window for good."""
    is_running: bool = False
    is_rejected: bool = False
    """It has waited for too long, and never runs again."""
    is_exact: bool = True
    cache_bytes: int = 0

    def info(self) -> SequenceInfo:
        """What a policy is shown."""
        return SequenceInfo(
            id=self.id,
            num_tokens=self.num_tokens,
            mode=self.mode,
            cache_bytes=self.cache_bytes,
            priority=self.priority,
            allow=self.allow,
            exact=self.is_exact,
        )


class Crowd:
    """Everybody who is in the record now, by number."""

    def __init__(self, header: Header) -> None:
        self._curves = header.curves
        self._full = header.curves.get(CacheMode("full"))
        self._slab_bytes = header.slab_bytes
        self._everyone: dict[int, Live] = {}
        self._unserved: set[int] = set()

    def __iter__(self) -> Iterator[Live]:
        return iter(self._everyone.values())

    def running(self) -> list[Live]:
        """Those with pages, the most urgent first."""
        running = [each for each in self if each.is_running]
        running.sort(key=_urgency)
        return running

    def waiting(self) -> list[Live]:
        """Those without, the most urgent first."""
        waiting = [each for each in self if not (each.is_running or each.is_rejected)]
        waiting.sort(key=_urgency)
        return waiting

    @property
    def num_rejected(self) -> int:
        """Of those that are gone, how many had waited in vain until then."""
        return len(self._unserved)

    def follow(self, seen: Iterable[Seen], time_s: float) -> list[tuple[Live, int]]:
        """Become as long as recorded; who gained how many tokens."""
        before, self._everyone = self._everyone, {}
        gains: list[tuple[Live, int]] = []
        for record in seen:
            live = before.pop(record.number, None)
            if live is None:
                live = Live(
                    number=record.number,
                    id=f"seq-{record.number}",
                    mode=record.mode,
                    priority=record.priority,
                    allow=record.allow,
                    since_s=time_s,
                )
            elif record.num_tokens > live.num_tokens:
                gains.append((live, record.num_tokens - live.num_tokens))
            live.num_tokens = record.num_tokens
            if live.share < 1:
                live.share = self._stored_share(record)
            self.weigh(live)
            self._everyone[record.number] = live
        self._unserved -= self._everyone.keys()  # it was only parked when it was recorded
        self._unserved |= {live.number for live in before.values() if not live.is_running}
        return gains

    def weigh(self, live: Live) -> None:
        """Bring bytes, gap and exactness up to date."""
        live.cache_bytes = 0
        if live.is_running and live.share > 0:
            self._note_loss(live)
            live.cache_bytes = int(live.share * self.bytes(live, live.mode))

    def bytes(self, live: Live, mode: CacheMode) -> int:
        """What all its tokens would weigh in a mode."""
        curve = self._curves.get(mode)
        if curve is None:
            return live.cache_bytes
        num_bytes = curve.bytes(live.num_tokens)
        if live.gap_tokens and mode.window is None:
            num_bytes -= live.gap_tokens * curve.growth_bytes // curve.period_tokens
        return num_bytes

    def held_bytes(self) -> int:
        """What the cache has taken: whole slabs."""
        used_bytes = sum([live.cache_bytes for live in self._everyone.values()])
        return -(-used_bytes // self._slab_bytes) * self._slab_bytes

    def _stored_share(self, record: Seen) -> float:
        """How much of a sequence was stored when it was seen, 0 to 1."""
        curve = self._curves.get(record.mode)
        before_bytes = curve.bytes(max(0, record.num_tokens - 1)) if curve else 0
        return min(1.0, record.cache_bytes / before_bytes) if before_bytes else 1.0

    def _note_loss(self, live: Live) -> None:
        mode = live.mode
        if mode in {"full", "disabled"} or self._full is None or mode not in self._curves:
            live.is_exact &= mode.is_exact
            return
        if live.is_exact:
            num_tokens = live.num_tokens
            is_packed = self._curves[mode].bytes(num_tokens) < self._full.bytes(num_tokens)
            live.is_exact = not is_packed
        base = self._curves.get(CacheMode(mode.page_format)) if mode.window else None
        if base is not None and base.growth_bytes:
            left_out = base.bytes(live.num_tokens) - self._curves[mode].bytes(live.num_tokens)
            gap_tokens = left_out * base.period_tokens // base.growth_bytes
            live.gap_tokens = max(live.gap_tokens, gap_tokens)


def _urgency(live: Live) -> tuple[int, int]:
    return -live.priority, live.number
